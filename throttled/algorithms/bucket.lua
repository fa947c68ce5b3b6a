-- The twin of bucket.py: the same operations in the same order.
-- State: at, credit, and after a promise ahead, peak.
fields, rule = 2, function(
  op, now, cost, patience, soonest, limit, period, burst, at, credit, ahead, peak
)
  local floor = math.floor
  local full = burst * period
  local last = ahead and at + ahead
  local found, promised = at, last
  local wait, remaining, written

  -- advance
  if not at then
    at, credit = now, full
  else
    local elapsed = now - at
    if elapsed >= 0 then
      at = now
      credit = credit + elapsed * limit
    elseif elapsed < -period then
      if last then last = last + elapsed end
      at = now
      written = true
    end
    if last and last <= at then last, peak = nil, nil end
    if credit > full then credit = full end
  end

  if op == 'admit' then
    local left = credit - cost * period
    if cost == 0 or (left >= 0 and not last and soonest <= now) then
      wait = 0
      if cost > 0 and patience >= 0 then
        credit = left
        written = true
      end
    elseif cost * period > full then
      wait = math.huge
    else
      local own = now
      if left < 0 then own = at - floor(left / limit) end
      local slot = own
      if last and last > slot then slot = last end
      if soonest > slot then slot = soonest end
      wait = slot - now
      if wait <= patience then
        if slot > own then
          local most = full - (slot - at) * limit
          if credit > most then credit = most end
        end
        local high = credit + (slot - at) * limit
        if high > full then high = full end
        if not peak or high > peak then peak = high end
        credit = credit - cost * period
        last = slot
        written = true
      end
    end
    remaining = credit > 0 and not last and floor(credit / period) or 0
  else -- adjust
    local delta, slot = cost, patience
    if delta >= 0 then
      credit = credit - delta * period
    else
      local give = -delta * period
      if slot and slot <= at and found then
        local since = promised and promised > found and promised or found
        if since > slot then give = give - (since - slot) * limit end
      end
      if last and give > full - peak then give = full - peak end
      if give <= 0 or credit == full then return end
      credit = credit + give
      if last then peak = peak + give end
      if credit > full then credit = full end
    end
    written = true
  end

  local reset_at = at - floor((credit - full) / limit)
  if last and last > reset_at then reset_at = last end
  return wait, remaining, reset_at - now, written and at, credit, last and last - at, peak
end
