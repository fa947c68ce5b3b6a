-- The twin of fixed_window.py: the same operations in the same order.
-- State: start, count, last, booked.
local rule = {fields = 4}

local function advance(state, now, limit, period)
  if not state then return now - now % period, 0, 0, 0, false end
  local start, count, last, booked = state[1], state[2], state[3], state[4]
  if now >= start + period then
    start = now - now % period
    if last > start then
      count = limit
    else
      count = last == start and booked or 0
      last, booked = 0, 0
    end
  elseif now < start - period then
    local back = start - (now - now % period)
    return start - back, count, last ~= 0 and last - back or 0, booked, true
  end
  return start, count, last, booked, false
end

function rule.admit(state, now, cost, patience, limit, period)
  local start, count, last, booked, stepped = advance(state, now, limit, period)
  local written = stepped and {start, count, last, booked} or nil
  local used = count + cost
  local wait
  if cost == 0 or (used <= limit and last == 0) then
    wait = 0
    if cost > 0 and patience >= 0 then
      count = used
      written = {start, count, 0, 0}
    end
  elseif cost > limit then
    wait = math.huge
  else
    local slot, taken
    if last == 0 then
      slot, taken = start + period, cost
    elseif booked + cost <= limit then
      slot, taken = last, booked + cost
    else
      slot, taken = last + period, cost
    end
    wait = slot - now
    if wait <= patience then
      last, booked = slot, taken
      written = {start, count, last, booked}
    end
  end
  if last ~= 0 then return written, wait, 0, (booked > 0 and last + period or last) - now end
  return written, wait, count < limit and limit - count or 0,
    count > 0 and start + period - now or 0
end

if op == 'admit' then return rule end

function rule.adjust(state, now, delta, slot, limit, period)
  local start, count, last, booked = advance(state, now, limit, period)
  local window = slot and slot - slot % period or start
  if last ~= 0 and window == last then
    booked = math.max(booked + delta, 0)
    if booked == 0 and last == start + period then last = 0 end
  elseif window == start and (count > 0 or delta > 0) then
    count = math.max(count + delta, 0)
  else
    return nil
  end
  return {start, count, last, booked}
end

function rule.reset_at(state, limit, period)
  if state[3] ~= 0 then return state[4] > 0 and state[3] + period or state[3] end
  return state[2] > 0 and state[1] + period or state[1]
end

return rule
