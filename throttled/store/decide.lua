-- Decides any number of groups in one run. The rules stand before this part, one Lua file an
-- algorithm; what is shared by them and written once stands in prelude.lua.
--
-- KEYS[i]: one key a group. ARGV[1]: now in µs, or '' for the server's TIME. Then for each group
-- op, rule, limit, period, burst, a, b:
--   admit   a = cost      b = patience in µs ('-inf': only look)
--   adjust  a = delta     b = slot in µs, '' = the newest
--   undo    a = written   b = before, both as an admit replied them
-- A group's reply stands in its own place: an array (admit), 1 or 0 (adjust, undo: was anything
-- written), or a string that says what is wrong. Each group is read in full before its first
-- write, so a bad one changes nothing.
local fixed = ARGV[1] ~= ''
if fixed then
  now = ARGV[1] + 0
else
  local time = call('TIME')
  now = time[1] * 1000000 + time[2]
end

-- A fixed now belongs to another clock than the server's, so keys then outlive any test.
milliseconds = function(duration)
  if duration <= 0 then return 0 end
  local ttl = -floor(-duration / 1000)
  if ttl > 1e15 then ttl = 1e15 end
  return fixed and ttl + 1e11 or ttl
end

local opened, opened_for = {}, nil

local function undo(rule, key, a, b, limit, period, burst)
  if rule.undo then return rule.undo(key, a, b, limit, period) end
  local raw = redis.pcall('GET', key)
  if type(raw) == 'table' then return raw.err end
  if raw ~= a then return 0 end
  local ttl = 0
  if b ~= '' then
    local one, two, three, four = b:match('^(%S+) (%S+) ?(%S*) ?(%S*)$')
    local state = {one + 0, two + 0, tonumber(three), tonumber(four)}
    ttl = milliseconds(rule.reset_at(state, limit, period, burst) - now)
  end
  if ttl > 0 then call('SET', key, b, 'PX', ttl) else call('DEL', key) end
  return 1
end

local function decide(key, op, name, limit, period, burst, a, b)
  if op ~= opened_for then opened, opened_for = {}, op end
  local rule = opened[name]
  if not rule then
    rule = open_rule(name, op)
    opened[name] = rule
  end
  limit, period, burst = limit + 0, period + 0, burst + 0
  if op == 'undo' then return undo(rule, key, a, b, limit, period, burst) end

  local fields, state, wrong = rule.fields, nil, nil
  if fields then state, wrong = read(key, fields) else state, wrong = rule.open(key) end
  if wrong then return wrong end

  local new, wait, remaining, reset_after, patience
  if op == 'admit' then
    patience = b + 0
    new, wait, remaining, reset_after =
      rule.admit(state, now, a + 0, patience, limit, period, burst, key)
  else
    new = rule.adjust(state, now, a + 0, tonumber(b), limit, period, burst, key)
    if not new then return 0 end
    reset_after = rule.reset_at(new, limit, period, burst) - now
  end
  local before, after
  if new then
    local ttl = milliseconds(reset_after)
    if ttl <= 0 then
      call('DEL', key)
    elseif fields then
      before, after = state and state.raw or '', written(new)
      call('SET', key, after, 'PX', ttl)
    else
      before, after = rule.save(new, ttl, key)
    end
    if op ~= 'admit' then return 1 end
  end
  -- Integers while they are exact as such.
  local promised = wait > 0 and wait <= patience
  if wait >= EXACT or reset_after >= EXACT then wait, reset_after = text(wait), text(reset_after) end
  if promised then return {wait, remaining, reset_after, now + wait, before, after} end
  return {wait, remaining, reset_after}
end

local replies = {}
for i = 1, #KEYS do
  local j = 7 * i - 5
  local fine, reply = pcall(decide, KEYS[i], ARGV[j], ARGV[j + 1], ARGV[j + 2], ARGV[j + 3],
    ARGV[j + 4], ARGV[j + 5], ARGV[j + 6])
  if not fine and type(reply) == 'table' then reply = reply.err end
  replies[i] = reply
end
return replies
