-- The twin of bucket.py: the same operations in the same order. State: at, credit.
local rule = {fields = 2}

local function advance(state, now, limit, period, full)
  if not state then return now, full, false end
  local at, credit = state[1], state[2]
  local elapsed = now - at
  local stepped = false
  if elapsed >= 0 then
    at = now
    credit = credit + elapsed * limit
  elseif elapsed < -period then
    at = now
    stepped = true
  end
  if credit > full then credit = full end
  return at, credit, stepped
end

function rule.admit(state, now, cost, patience, limit, period, burst)
  local full = burst * period
  local at, credit, stepped = advance(state, now, limit, period, full)
  local left = credit - cost * period
  local written = stepped and {at, credit} or nil
  local wait
  if left >= 0 or cost == 0 then
    wait = 0
    if cost > 0 and patience >= 0 then
      credit = left
      written = {at, credit}
    end
  elseif cost * period > full then
    wait = math.huge
  else
    wait = at - now - floor(left / limit)
    if wait <= patience then
      credit = left
      written = {at, credit}
    end
  end
  local remaining = credit > 0 and floor(credit / period) or 0
  return written, wait, remaining, at - now - floor((credit - full) / limit)
end

if op == 'admit' then return rule end

function rule.adjust(state, now, delta, slot, limit, period, burst)
  local full = burst * period
  local at, credit = advance(state, now, limit, period, full)
  if delta >= 0 then
    credit = credit - delta * period
  else
    local give = -delta * period
    if slot and state then
      local last, spent = state[1], state[2]
      if spent < 0 then last = last - floor(spent / limit) end
      if last > slot then give = give - (last - slot) * limit end
    end
    if give <= 0 or credit == full then return nil end
    credit = credit + give
    if credit > full then credit = full end
  end
  return {at, credit}
end

function rule.reset_at(state, limit, period, burst)
  return state[1] - floor((state[2] - burst * period) / limit)
end

return rule
