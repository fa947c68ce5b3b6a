-- The twin of sliding_window_log.py. The key is a list: before, slot, before, slot, ..., total, and
-- then -at where that is not the last slot (about 15 bytes an entry). Its two ends are read in
-- O(1), the rest by halves. Nothing is written before rule.save.
local rule = {}

-- What closes the list after the last slot.
local function close(items, total, at, last)
  items[#items + 1] = text(total)
  if at ~= last then items[#items + 1] = text(-at) end
  return items
end

-- What goes into the middle of a list, for which the common call has no use.
local function inside()
  local function entry(state, index)
    local pair = call('LRANGE', state.key, 2 * index, 2 * index + 1)
    local before, slot = whole(pair[1]), whole(pair[2])
    if not (slot and before) then error('damaged state: ' .. table.concat(pair, ' '), 0) end
    return slot - state.back, before
  end

  local function size(state)
    local items = call('LLEN', state.key) - state.marked
    if items % 2 == 0 then error('damaged state: ' .. items .. ' items', 0) end
    return (items - 1) / 2
  end

  -- The least index in (low, high] whose entry satisfies `beyond`, known to hold at high and not at
  -- low; and the slot of the entry before it.
  local function halve(state, low, low_slot, high, beyond)
    while high - low > 1 do
      local middle = floor((low + high) / 2)
      local slot, before = entry(state, middle)
      if beyond(slot, before) then high = middle else low, low_slot = middle, slot end
    end
    return high, low_slot
  end

  -- Plans to write the entries {slot, cost} in the place of all from index on.
  local function rewrite(state, index, running, entries)
    local items = {}
    for i = 1, #entries do
      items[#items + 1] = text(running)
      items[#items + 1] = text(entries[i][1])
      running = running + entries[i][2]
      state.last = entries[i][1]
    end
    if #items > 0 then close(items, running, state.at, state.last) end
    state.from, state.items = 2 * index, items
  end

  -- The entries from index to the end as {slot, cost}.
  local function entries_from(state, index, entries)
    local raw = call('LRANGE', state.key, 2 * index, -1 - state.marked)
    for i = 1, #raw - 2, 2 do
      local before, slot, after = whole(raw[i]), whole(raw[i + 1]), whole(raw[i + 2])
      if not (before and slot and after) then error('damaged state: ' .. raw[i], 0) end
      entries[#entries + 1] = {slot - state.back, after - before}
    end
    return entries
  end

  return entry, size, halve, rewrite, entries_from
end

-- The two ends of the list; nil when the key is absent; nil and why when it cannot be read.
function rule.open(key)
  local tail = redis.pcall('LRANGE', key, -3, -1)
  if tail.err then return nil, tail.err end
  if #tail == 0 then return nil end
  local before, slot, total = whole(tail[1]), whole(tail[2]), whole(tail[3])
  local ends = call('LRANGE', key, 0, 1)
  local base, first = whole(ends[1]), whole(ends[2])
  if not (before and slot and total and base and first) or #tail ~= 3 then
    return nil, 'damaged state: a list that ends in ' .. table.concat(tail, ' ')
  end
  if total < 0 then
    return {key = key, at = -total, last = before, total = slot, base = base, first = first,
      marked = 1, head = 0, back = 0, mark = tail[3]}
  end
  return {key = key, at = slot, last = slot, total = total, base = base, first = first,
    marked = 0, head = 0, back = 0, newest = before}
end

local function advance(state, key, now, period)
  if not state then
    return {key = key, at = now, last = now, total = 0, empty = true, head = 0, back = 0}, false
  end
  local stepped = false
  if now >= state.at then
    state.at = now
  elseif now < state.at - period then
    state.back = state.at - now
    state.at = now
    state.last = state.last - state.back
    state.first = state.first - state.back
    stepped = true
  end
  local edge = state.at - period
  if state.first <= edge then
    local entry, size, halve = inside()
    local count = size(state)
    if state.last <= edge then
      state.empty = true
    else
      state.head = halve(state, 0, state.first, count - 1, function(slot) return slot > edge end)
      state.first, state.base = entry(state, state.head)
    end
  end
  return state, stepped
end

local function append(state, slot, cost)
  if state.empty then
    state.from, state.head = 0, 0
    state.items = close({'0', text(slot)}, cost, state.at, slot)
  elseif state.back ~= 0 or (state.total > 4503599627370496 and not state.promise) then
    local _, _, _, rewrite, entries_from = inside()
    local entries = entries_from(state, state.head, {})
    entries[#entries + 1] = {slot, cost}
    rewrite(state, state.head, state.back ~= 0 and state.base or 0, entries)
    if state.back ~= 0 then state.mark = text(-state.at) end
  else
    state.items = close({text(slot)}, state.total + cost, state.at, slot)
  end
  state.last = slot
end

-- Returns what undo takes, for a promise.
function rule.save(state, ttl, key)
  local items, from, marked = state.items, state.from, state.marked
  if from and (from <= 2 * state.head or state.back ~= 0) then
    call('DEL', key)
  elseif from then
    call('LTRIM', key, 2 * state.head, from - 1)
  elseif state.head > 0 then
    call('LTRIM', key, 2 * state.head, -1 - marked)
  elseif marked == 1 then
    call('RPOP', key)
  end
  if #items == 2 then
    call('RPUSH', key, items[1], items[2])
  else
    for i = 1, #items, 128 do
      call('RPUSH', key, unpack(items, i, math.min(i + 127, #items)))
    end
  end
  if #items > 0 then call('PEXPIRE', key, ttl) end
  if state.promise then
    return state.marked and (state.mark or '0') or '',
      table.concat(call('LRANGE', key, -3, -1), ' ')
  end
end

function rule.admit(state, now, cost, patience, limit, period, burst, key)
  local stepped
  state, stepped = advance(state, key, now, period)
  local at = state.at
  local used, last = 0, at
  if not state.empty then used, last = state.total - state.base, state.last end
  local wait
  if cost == 0 or (used + cost <= limit and last <= at) then
    wait = 0
    if cost > 0 and patience >= 0 then
      append(state, at, cost)
      return state, wait, limit - used - cost, at + period - now
    end
  elseif cost > limit then
    wait = math.huge
  else
    local slot = last > at and last or at
    local bar = state.total + cost - limit
    if state.base < bar then
      local entry, size, halve = inside()
      local count = size(state)
      local newest = state.newest
      if not newest then
        local _
        _, newest = entry(state, count - 1)
      end
      local _, edge = nil, state.last
      if newest >= bar then
        _, edge = halve(state, state.head, state.first, count - 1,
          function(_, before) return before >= bar end)
      end
      if edge + period > slot then slot = edge + period end
    end
    wait = slot - now
    if wait <= patience then
      state.promise = true
      if not stepped then state.head = 0 end
      append(state, slot, cost)
      return state, wait, 0, slot + period - now
    end
  end
  local room = 0
  if last <= at and used < limit then room = limit - used end
  local reset_after = state.empty and 0 or last + period - now
  if stepped then
    local _, _, _, rewrite, entries_from = inside()
    local entries = state.empty and {} or entries_from(state, state.head, {})
    rewrite(state, state.head, state.base, entries)
    return state, wait, room, reset_after
  end
  return nil, wait, room, reset_after
end

if op == 'admit' then return rule end

function rule.reset_at(state, limit, period)
  return #state.items > 0 and state.last + period or 0
end

function rule.adjust(state, now, delta, slot, limit, period, burst, key)
  if not state and delta <= 0 then return nil end
  state = advance(state, key, now, period)
  if delta >= 0 then
    if delta == 0 then return nil end
    append(state, not state.empty and state.last > state.at and state.last or state.at, delta)
    return state
  end
  if state.empty then return nil end
  local entry, size, halve, rewrite, entries_from = inside()
  local give, count = -delta, size(state)
  local stop = count
  if slot and slot < state.last then
    if slot < state.first then return nil end
    stop = halve(state, state.head, state.first, count - 1, function(s) return s > slot end)
  end
  local index, kept, after, _ = stop, {}, state.total, nil
  if stop < count then _, after = entry(state, stop) end
  while index > state.head and give > 0 do
    local taken, before = entry(state, index - 1)
    if slot and taken ~= slot then break end
    index = index - 1
    local back = math.min(give, after - before)
    give = give - back
    if after - before > back then table.insert(kept, 1, {taken, after - before - back}) end
    after = before
  end
  if index == stop then return nil end
  if stop < count then entries_from(state, stop, kept) end
  if state.back ~= 0 then
    local all = entries_from(state, state.head, {})
    for i = #all, index - state.head + 1, -1 do all[i] = nil end
    for i = 1, #kept do all[#all + 1] = kept[i] end
    rewrite(state, state.head, state.base, all)
  elseif #kept == 0 and index > state.head then
    state.last = entry(state, index - 1)
    state.from, state.items = 2 * index, close({}, after, state.at, state.last)
  else
    rewrite(state, index, after, kept)
  end
  return state
end

-- A promise is the last of the list; `before` is what had closed it, '0' if nothing but the total.
function rule.undo(key, written, before, limit, period)
  local tail = redis.pcall('LRANGE', key, -3, -1)
  if tail.err then return tail.err end
  if table.concat(tail, ' ') ~= written then return 0 end
  call('LTRIM', key, 0, whole(tail[3]) < 0 and -4 or -3)
  local last = before ~= '' and whole(call('LINDEX', key, -2))
  local ttl = last and milliseconds(last + period - now) or 0
  if ttl <= 0 then
    call('DEL', key)
  else
    if before ~= '0' then call('RPUSH', key, before) end
    call('PEXPIRE', key, ttl)
  end
  return 1
end

return rule
