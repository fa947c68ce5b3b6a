-- The twin of sliding_window.py: the same operations in the same order.
-- State: at, previous, current, last.
local rule = {fields = 4}

local function advance(state, now, period)
  if not state then return now, 0, 0, now, now - now % period, false end
  local at, previous, current, last = state[1], state[2], state[3], state[4]
  local stepped = false
  if now >= at then
    at = now
  elseif now < at - period then
    last = last - (at - now)
    at = now
    stepped = true
  end
  local start = last - last % period
  if at > last then
    last = at
    if at >= start + period then
      previous = at < start + period + period and current or 0
      current = 0
      start = at - at % period
    end
  end
  return at, previous, current, last, start, stepped
end

function rule.admit(state, now, cost, patience, limit, period)
  local at, previous, current, last, start, stepped = advance(state, now, period)
  local written = stepped and {at, previous, current, last} or nil
  local queued = last > at
  local stop = start + period
  local room = limit - current - cost
  local need = previous * (stop - last)
  local have = room * period
  local fits = room >= 0 and (need < have or (need == have and have < EXACT))
  local wait
  if cost == 0 or (fits and not queued) then
    wait = 0
    if cost > 0 and patience >= 0 then
      current = current + cost
      written = {at, previous, current, last}
    end
  elseif cost > limit then
    wait = math.huge
  else
    local slot
    if fits then
      slot = last
    elseif room >= 0 then
      slot = stop - floor(have / previous)
      if slot <= last then slot = last + 1 end
    else
      slot = stop + period - floor((limit - cost) * period / current)
    end
    wait = slot - now
    if wait <= patience then
      if slot >= stop then
        previous = slot < stop + period and current or 0
        current = 0
        start = slot - slot % period
      end
      current = current + cost
      last = slot
      queued = true
      written = {at, previous, current, last}
    end
  end
  local free = 0
  if not queued then
    free = limit - current + floor(-need / period)
    if free < 0 then free = 0 end
  end
  local reset_at = last
  if current > 0 then
    reset_at = start + period + period
  elseif previous > 0 then
    reset_at = start + period
  end
  return written, wait, free, reset_at - now
end

if op == 'admit' then return rule end

function rule.reset_at(state, limit, period)
  local last = state[4]
  if state[3] > 0 then return last - last % period + period + period end
  return state[2] > 0 and last - last % period + period or last
end

function rule.adjust(state, now, delta, slot, limit, period)
  local at, previous, current, last, start = advance(state, now, period)
  slot = slot or at
  if delta < 0 and at < slot and slot < last then return nil end
  if slot >= start then
    if current == 0 and delta <= 0 then return nil end
    current = math.max(current + delta, 0)
  elseif slot >= start - period then
    if previous == 0 and delta <= 0 then return nil end
    previous = math.max(previous + delta, 0)
  else
    return nil
  end
  return {at, previous, current, last}
end

return rule
