-- The twin of hold.py: the same operations in the same order. State: at, until.
fields, rule = 2, function(op, now, cost, patience, soonest, limit, period, burst, at, ends)
  local written
  if not at then
    at, ends = now, 0
  elseif now < at - (ends - at) then
    at, ends = now, ends - (at - now)
    written = true
  elseif now > at then
    at = now
  end
  if op == 'admit' then
    local left = ends > now and ends - now or 0
    return cost > 0 and left or 0, left > 0 and 0 or 1e9, left, written and at, ends
  end
  if cost <= 0 or now + cost <= ends then return end
  return nil, nil, cost, now, now + cost
end
