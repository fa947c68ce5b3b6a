-- The twin of sliding_window.py: the same operations in the same order.
-- State: at, previous, current, last.
fields, rule = 4, function(
  op, now, cost, patience, soonest, limit, period, burst, at, previous, current, last
)
  local floor = math.floor
  local wait, free, written

  -- advance
  if not at then at, previous, current, last = now, 0, 0, now end
  if now >= at then
    at = now
  elseif now < at - period then
    last = last - (at - now)
    at = now
    written = true
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

  if op == 'admit' then
    local queued = last > at
    local stop = start + period
    local room = limit - current - cost
    local need = previous * (stop - last)
    local have = room * period
    local fits = room >= 0 and (need < have or (need == have and have < 2 ^ 53))
    if cost == 0 or (fits and not queued and soonest <= now) then
      wait = 0
      if cost > 0 and patience >= 0 then
        current = current + cost
        written = true
      end
    elseif cost > limit then
      wait = math.huge
    else
      local slot
      if fits then
        slot = queued and last or now
      elseif room >= 0 then
        slot = stop - floor(have / previous)
        if slot <= last then slot = last + 1 end
      else
        slot = stop + period - floor((limit - cost) * period / current)
      end
      if soonest > slot then slot = soonest end
      wait = slot - now
      if wait <= patience then
        if slot >= stop then
          previous = slot < stop + period and current or 0
          current = 0
          start = slot - slot % period
        end
        current = current + cost
        if slot > last then last = slot end
        queued = true
        written = true
      end
    end
    free = 0
    if not queued then
      free = limit - current + floor(-need / period)
      if free < 0 then free = 0 end
    end
  else -- adjust
    local delta, slot = cost, patience or at
    if delta < 0 and not patience then
      -- Which of this window's have come, and which wait, is not known.
      if start <= at and at < last then return end
      local newest = start <= at and math.min(-delta, current) or 0
      local older = math.min(-delta - newest, previous)
      if newest == 0 and older == 0 then return end
      previous, current = previous - older, current - newest
    elseif delta < 0 and at < slot and slot < last then
      return
    elseif slot >= start then
      if current == 0 and delta <= 0 then return end
      current = math.max(current + delta, 0)
    elseif slot >= start - period then
      if previous == 0 and delta <= 0 then return end
      previous = math.max(previous + delta, 0)
    elseif delta > 0 then
      current = current + delta
    else
      return
    end
    written = true
  end

  local reset_at = last
  if current > 0 then
    reset_at = start + period + period
  elseif previous > 0 then
    reset_at = start + period
  end
  return wait, free, reset_at - now, written and at, previous, current, last
end
