-- The twin of fixed_window.py: the same operations in the same order.
-- State: start, count, last, booked.
fields, rule = 4, function(
  op, now, cost, patience, soonest, limit, period, burst, start, count, last, booked
)
  local wait, written

  -- advance
  if not start then
    start, count, last, booked = now - now % period, 0, 0, 0
  elseif now >= start + period then
    start = now - now % period
    if last >= start + period then
      count = limit
    else
      count = last >= start and booked or 0
      last, booked = 0, 0
    end
  elseif now < start - period then
    local back = start - (now - now % period)
    start = start - back
    if last ~= 0 then last = last - back end
    written = true
  end

  if op == 'admit' then
    local taken = count + cost
    local fits = taken <= limit and last == 0
    if cost == 0 or (fits and soonest <= now) then
      wait = 0
      if cost > 0 and patience >= 0 then
        count, booked = taken, 0
        written = true
      end
    elseif cost > limit then
      wait = math.huge
    else
      local window, slot = start, now
      if fits then
        -- taken as it is
      elseif last == 0 then
        window, taken = start + period, cost
        slot = window
      else
        window, slot, taken = last - last % period, last, booked + cost
        if taken > limit then
          window, taken = window + period, cost
          slot = window
        end
      end
      if soonest > slot then
        slot = soonest
        if slot >= window + period then window, taken = slot - slot % period, cost end
      end
      wait = slot - now
      if wait <= patience then
        if window == start then
          count = taken
        else
          last, booked = slot, taken
        end
        written = true
      end
    end
  else -- adjust
    local delta, slot = cost, patience
    local window = slot and slot - slot % period or start
    if last ~= 0 and window == last - last % period then
      booked = math.max(booked + delta, 0)
      if booked == 0 and window == start + period then last = 0 end
    elseif window == start and (count > 0 or delta > 0) then
      count = math.max(count + delta, 0)
    else
      return
    end
    written = true
  end

  local remaining, reset_after = 0, op == 'admit' and 0 or start - now
  if last ~= 0 then
    local window = last - last % period
    reset_after = (booked > 0 and window + period or window) - now
  else
    if count < limit then remaining = limit - count end
    if count > 0 then reset_after = start + period - now end
  end
  return wait, remaining, reset_after, written and start, count, last, booked
end
