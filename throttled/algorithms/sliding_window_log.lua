-- The twin of sliding_window_log.py. The key is a list: slot, before, slot, before, ..., total, at
-- (about 15 bytes an entry). Its two ends are read in O(1), the rest by halves.
local rule = {}
local RENUMBER = 4503599627370496

local function entry(state, index)
  local pair = redis.call('LRANGE', state.key, 2 * index, 2 * index + 1)
  local slot, before = whole(pair[1]), whole(pair[2])
  if not (slot and before) then error('damaged state: ' .. table.concat(pair, ' '), 0) end
  return slot - state.back, before
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

-- The two ends of the list; nil when the key is absent; nil and why when it cannot be read.
function rule.open(key)
  local tail = redis.pcall('LRANGE', key, -4, -1)
  if tail.err then return nil, tail.err end
  if #tail == 0 then return nil end
  local slot, before, total, at = whole(tail[1]), whole(tail[2]), whole(tail[3]), whole(tail[4])
  local length = redis.call('LLEN', key)
  if not (slot and before and total and at) or length % 2 ~= 0 then
    return nil, 'damaged state: ' .. length .. ' items ending in ' .. table.concat(tail, ' ')
  end
  local state = {key = key, at = at, last = slot, newest = before, total = total,
    head = 0, size = length / 2 - 1, back = 0, ends = {total, at}}
  state.first, state.base = entry(state, 0)
  return state
end

local function advance(state, key, now, period)
  if not state then
    return {key = key, at = now, last = now, total = 0, head = 0, size = 0, back = 0}, false
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
  if state.last <= edge then
    state.head = state.size
  elseif state.first <= edge then
    state.head = halve(state, 0, state.first, state.size - 1, function(slot) return slot > edge end)
    state.first, state.base = entry(state, state.head)
  end
  return state, stepped
end

-- Plans the list's items from `from` on: entries {slot, cost}, then the ends. Nothing is written
-- before rule.save.
local function rewrite(state, from, running, entries)
  local items = {}
  for i = 1, #entries do
    items[#items + 1] = text(entries[i][1])
    items[#items + 1] = text(running)
    running = running + entries[i][2]
    state.last = entries[i][1]
  end
  if #items > 0 then
    items[#items + 1] = text(running)
    items[#items + 1] = text(state.at)
  end
  state.from, state.items = from, items
end

-- The entries from index to the end as {slot, cost}.
local function entries_from(state, index, entries)
  local raw = redis.call('LRANGE', state.key, 2 * index, -2)
  for i = 1, #raw, 2 do raw[i] = whole(raw[i]) - state.back end
  for i = 2, #raw, 2 do raw[i] = whole(raw[i]) end
  raw[#raw + 1] = raw[#raw]  -- the total stands where the next `before` would
  for i = 1, 2 * (state.size - index), 2 do
    local after = i + 3 <= 2 * (state.size - index) and raw[i + 3] or state.total
    entries[#entries + 1] = {raw[i], after - raw[i + 1]}
  end
  return entries
end

local function append(state, slot, cost)
  if state.head == state.size then
    state.head, state.size, state.total = 0, 0, 0
    state.from = 0
  elseif state.back ~= 0 or (state.total > RENUMBER and not state.promise) then
    local entries = entries_from(state, state.head, {})
    entries[#entries + 1] = {slot, cost}
    rewrite(state, 0, state.back ~= 0 and state.base or 0, entries)
    if state.back ~= 0 then state.ends = {state.total, state.at} end
    return
  else
    state.from = state.size
  end
  state.last = slot
  state.items = {text(slot), text(state.total), text(state.total + cost), text(state.at)}
end

function rule.admit(state, now, cost, patience, limit, period, burst, key)
  local stepped
  state, stepped = advance(state, key, now, period)
  local empty = state.head == state.size
  local used = empty and 0 or state.total - state.base
  local last = empty and state.at or state.last
  local at = state.at
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
    local edge
    if state.newest < bar then
      edge = state.last
    elseif state.base < bar then
      local _
      _, edge = halve(state, state.head, state.first, state.size - 1,
        function(_, before) return before >= bar end)
    end
    if edge and edge + period > slot then slot = edge + period end
    wait = slot - now
    if wait <= patience then
      state.promise = true
      if not stepped then state.head = 0 end
      append(state, slot, cost)
      return state, wait, 0, slot + period - now
    end
  end
  local room = 0
  if last <= at then room = math.max(limit - used, 0) end
  local reset_after = empty and 0 or last + period - now
  if stepped then
    rewrite(state, 0, state.base, empty and {} or entries_from(state, state.head, {}))
    return state, wait, room, reset_after
  end
  return nil, wait, room, reset_after
end

function rule.adjust(state, now, delta, slot, limit, period, burst, key)
  if not state and delta <= 0 then return nil end
  state = advance(state, key, now, period)
  if delta >= 0 then
    if delta == 0 then return nil end
    local empty = state.head == state.size
    append(state, not empty and state.last > state.at and state.last or state.at, delta)
    return state
  end
  if state.head == state.size then return nil end
  local give = -delta
  local stop = state.size
  if slot and slot < state.last then
    if slot < state.first then return nil end
    stop = halve(state, state.head, state.first, state.size - 1, function(s) return s > slot end)
  end
  local index, kept = stop, {}
  local after = state.total
  if stop < state.size then
    local _
    _, after = entry(state, stop)
  end
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
  if stop < state.size then entries_from(state, stop, kept) end
  if state.back ~= 0 then
    local all = entries_from(state, state.head, {})
    for i = #all, index - state.head + 1, -1 do all[i] = nil end
    for i = 1, #kept do all[#all + 1] = kept[i] end
    rewrite(state, 0, state.base, all)
    return state
  end
  if #kept == 0 and index > state.head then
    state.last = entry(state, index - 1)
    state.from, state.items = index, {text(after), text(state.at)}
  else
    rewrite(state, index, after, kept)
  end
  return state
end

-- Entries below head are dropped, those from `from` on replaced by items, all at once.
function rule.save(state, ttl)
  local key = state.key
  if state.from <= state.head or state.back ~= 0 then
    redis.call('DEL', key)
  else
    redis.call('LTRIM', key, 2 * state.head, 2 * state.from - 1)
  end
  local items = state.items
  for i = 1, #items, 128 do
    redis.call('RPUSH', key, unpack(items, i, math.min(i + 127, #items)))
  end
  if #items > 0 then redis.call('PEXPIRE', key, ttl) end
end

function rule.before(state)
  return state and table.concat({text(state.ends[1]), text(state.ends[2])}, ' ') or ''
end

function rule.written(state)
  local items = state.items
  return table.concat(items, ' ', #items - 3)
end

function rule.undo(key, written, before, now, limit, period)
  local tail = redis.pcall('LRANGE', key, -6, -1)
  if tail.err then error(tail.err, 0) end
  if #tail < 4 or table.concat(tail, ' ', #tail - 3) ~= written then return 0 end
  local ttl = #tail == 6 and before ~= '' and milliseconds(whole(tail[1]) + period - now) or 0
  if ttl <= 0 then
    redis.call('DEL', key)
  else
    local total, at = before:match('^(%S+) (%S+)$')
    redis.call('LTRIM', key, 0, -5)
    redis.call('RPUSH', key, total, at)
    redis.call('PEXPIRE', key, ttl)
  end
  return 1
end

function rule.reset_at(state, limit, period)
  return #state.items > 0 and state.last + period or 0
end

return rule
