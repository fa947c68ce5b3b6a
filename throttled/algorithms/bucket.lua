-- The twin of bucket.py: the same operations in the same order. State: at, credit.
fields, rule = 2, function(op, now, cost, patience, limit, period, burst, at, credit)
  local floor = math.floor
  local full = burst * period
  local last, spent = at, credit
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
      at = now
      written = true
    end
    if credit > full then credit = full end
  end

  if op == 'admit' then
    local left = credit - cost * period
    if left >= 0 or cost == 0 then
      wait = 0
      if cost > 0 and patience >= 0 then
        credit = left
        written = true
      end
    elseif cost * period > full then
      wait = math.huge
    else
      wait = at - now - floor(left / limit)
      if wait <= patience then
        credit = left
        written = true
      end
    end
    remaining = credit > 0 and floor(credit / period) or 0
  else -- adjust
    local delta, slot = cost, patience
    if delta >= 0 then
      credit = credit - delta * period
    else
      local give = -delta * period
      if slot and last then
        if spent < 0 then last = last - floor(spent / limit) end
        if last > slot then give = give - (last - slot) * limit end
      end
      if give <= 0 or credit == full then return end
      credit = credit + give
      if credit > full then credit = full end
    end
    written = true
  end

  local reset_after = at - now - floor((credit - full) / limit)
  return wait, remaining, reset_after, written and at, credit
end
