-- The twin of sliding_window_log.py. The key is a list: before, slot, before, slot, ..., total, and
-- then -at where that is not the last slot (about 15 bytes an entry). Its two ends are read in
-- O(1), the rest by halves. Nothing is written before all is known.
--
-- It is one function, for a run pays for each that it makes. Its parts are named as in the twin.
fields, rule = nil, function(
  op, now, cost, patience, soonest, limit, period, burst, key
)
  local call = redis.call
  local tail = redis.pcall('LRANGE', key, -3, -1)
  if tail.err then error(tail.err, 0) end

  -- undo: the promise is the last of the list. `before` is the -at that had closed it, or '0'.
  if op == 'undo' then
    local written, before = cost, patience
    if table.concat(tail, ' ') ~= written then return end
    call('LTRIM', key, 0, tonumber(tail[3]) < 0 and -4 or -3)
    local last = call('LINDEX', key, -2)
    if not last then return 0, 0, 0, written end  -- nothing else was there
    if before ~= '0' then call('RPUSH', key, before) end
    return 0, 0, last + period - now, written
  end

  -- The two ends of the list.
  local at, last, total, base, first = now, now, 0, 0, now
  local empty, mark, newest = #tail == 0, nil, nil
  if not empty then
    local one, two, three = tonumber(tail[1]), tonumber(tail[2]), tonumber(tail[3])
    local ends = call('LRANGE', key, 0, 1)
    base, first = tonumber(ends[1]), tonumber(ends[2])
    local sum = one and two and three and base and first and one + two + three + base + first
    if not sum or sum - sum ~= 0 then
      error('damaged state: a list that ends in ' .. table.concat(tail, ' '), 0)
    end
    if three < 0 then
      last, total, at, mark = one, two, -three, tail[3]
    else
      newest, last, at, total = one, two, two, three
    end
  end

  -- What goes into the middle of the list, for which the common call has no use.
  local function inside(key, marked, back)
    local function entry(index)
      local pair = redis.call('LRANGE', key, 2 * index, 2 * index + 1)
      local before, slot = tonumber(pair[1]), tonumber(pair[2])
      local sum = before and slot and before + slot
      if not sum or sum - sum ~= 0 then
        error('damaged state: ' .. table.concat(pair, ' '), 0)
      end
      return slot - back, before
    end

    local function size()
      local items = redis.call('LLEN', key) - marked
      if items % 2 == 0 then error('damaged state: ' .. items .. ' items', 0) end
      return (items - 1) / 2
    end

    -- The least index in (low, high] whose entry satisfies `beyond`, known to hold at high and not
    -- at low; and the slot of the entry before it. It is mostly near low: strides, then halves.
    local function search(low, low_slot, high, beyond)
      local stride = 1
      while high - low > 1 do
        local middle = math.min(low + stride, math.floor((low + high) / 2))
        local slot, before = entry(middle)
        if beyond(slot, before) then
          high = middle
        else
          low, low_slot, stride = middle, slot, 2 * stride
        end
      end
      return high, low_slot
    end

    -- The entries from index to the end as {slot, cost}, behind those given.
    local function entries_from(index, entries)
      local raw = redis.call('LRANGE', key, 2 * index, -1 - marked)
      for i = 1, #raw - 2, 2 do
        local before, slot, after = tonumber(raw[i]), tonumber(raw[i + 1]), tonumber(raw[i + 2])
        local sum = before and slot and after and before + slot + after
        if not sum or sum - sum ~= 0 then error('damaged state: ' .. raw[i], 0) end
        entries[#entries + 1] = {slot - back, after - before}
      end
      return entries
    end

    return entry, size, search, entries_from
  end

  -- advance
  local head, back, marked, stepped = 0, 0, mark and 1 or 0, false
  if not empty then
    if now >= at then
      at = now
    elseif now < at - period then
      back = at - now
      at, last, first = now, last - back, first - back
      stepped = true
    end
    local edge = at - period
    if first <= edge then
      local entry, size, search = inside(key, marked, back)
      local count = size()
      if last <= edge then
        empty = true
        last, total, base = at, 0, 0
      else
        head = search(0, first, count - 1, function(slot) return slot > edge end)
        first, base = entry(head)
      end
    end
  end

  -- What is to be written: an entry at the end, or `entries` in the place of all from an index on.
  local slot, promised, entries, from, running
  local wait, used = 0, total - base

  if op == 'admit' then
    local fits = used + cost <= limit and last <= at
    if cost == 0 or (fits and soonest <= now) then
      if cost > 0 and patience >= 0 then
        slot = at
        used = used + cost
      end
    elseif cost > limit then
      wait = math.huge
    else
      local free = fits and now or last > at and last or at
      local bar = total + cost - limit
      if base < bar then
        local entry, size, search = inside(key, marked, back)
        local count, edge = size(), last
        local _
        if not newest then _, newest = entry(count - 1) end
        if newest >= bar then
          _, edge = search(head, first, count - 1, function(_, before) return before >= bar end)
        end
        if edge + period > free then free = edge + period end
      end
      if soonest > free then free = soonest end
      wait = free - now
      if wait <= patience then
        -- A promise keeps what it found, expired or not, so that it can be undone.
        if not stepped then head = 0 end
        slot, promised = at > free and at or free, true
      end
    end
    if stepped and not slot then
      local _, _, _, entries_from = inside(key, marked, back)
      entries, from, running = empty and {} or entries_from(head, {}), head, base
    end
  elseif cost > 0 then -- adjust
    slot = last > at and last or at
  elseif cost == 0 or empty then
    return
  else
    local entry, size, search, entries_from = inside(key, marked, back)
    local give, asked, count = -cost, patience, size()
    local stop, after, _ = count, total, nil
    local latest = asked or at
    if latest < last then
      if latest < first then return end
      stop = search(head, first, count - 1, function(s) return s > latest end)
      _, after = entry(stop)
    end
    entries, from = {}, stop
    while from > head and give > 0 do
      local taken, before = entry(from - 1)
      if asked and taken ~= asked then break end
      from = from - 1
      local returned = math.min(give, after - before)
      give = give - returned
      if after - before > returned then
        table.insert(entries, 1, {taken, after - before - returned})
      end
      after = before
    end
    if from == stop then return end
    if stop < count then entries_from(stop, entries) end
    running = after
    if stepped then
      local all = entries_from(head, {})
      for i = #all, from - head + 1, -1 do all[i] = nil end
      for i = 1, #entries do all[#all + 1] = entries[i] end
      entries, from, running = all, head, base
    end
  end

  -- What is left, and the end of it unless something is to be written.
  local room = 0
  if last <= at and used < limit and not promised then room = limit - used end
  if not (slot or entries) or soonest < 0 then return wait, room, empty and 0 or last + period - now end

  -- append
  if slot and empty then
    entries, from, running = {{slot, cost}}, 0, 0
  elseif slot and (stepped or (total > 2 ^ 52 and not promised)) then
    local _, _, _, entries_from = inside(key, marked, back)
    entries, from, running = entries_from(head, {}), head, stepped and base or 0
    entries[#entries + 1] = {slot, cost}
  end
  local items = {}
  if not entries then
    items[1], last, total = slot, slot, total + cost
  else
    for i = 1, #entries do
      items[2 * i - 1], items[2 * i] = running, entries[i][1]
      last, running = entries[i][1], running + entries[i][2]
    end
    if #entries == 0 then
      if from == head then return wait, room, 0, true end
      last = inside(key, marked, back)(from - 1)
    end
    total = running
  end
  items[#items + 1] = total
  if at ~= last then items[#items + 1] = -at end
  for i, number in ipairs(items) do
    -- How these are written would depend on the server.
    if number >= 2 ^ 53 or number <= -2 ^ 53 then items[i] = string.format('%.17g', number) end
  end

  -- Write. A server out of memory refuses LSET and RPUSH, but nothing once a script has written. So
  -- they go first where an entry is added, and after LTRIM where some are given back.
  local present, pushed = #tail > 0, 1
  if entries and from > head then
    call('LTRIM', key, 2 * head, 2 * from - 1)
  elseif mark and not entries then
    call('LSET', key, -1, items[1])
    pushed = 2
  end
  for i = pushed, #items, 128 do
    call('RPUSH', key, unpack(items, i, math.min(i + 127, #items)))
  end
  if present and entries and from == head then
    call('LTRIM', key, -#items, -1)
  elseif head > 0 and not entries then
    call('LTRIM', key, 2 * head, -1)
  end
  local after, before = true, nil
  if promised then
    before = stepped and string.format('%.17g', -at) or mark or '0'
    after = table.concat(call('LRANGE', key, -3, -1), ' ')
  end
  return wait, room, last + period - now, after, before
end
