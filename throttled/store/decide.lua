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
local now
if ARGV[1] == '' then
  local time = redis.call('TIME')
  now = tonumber(time[1]) * 1000000 + tonumber(time[2])
else
  now = tonumber(ARGV[1])
end

-- A fixed now belongs to another clock than the server's, so keys then outlive any test.
milliseconds = function(duration)
  if duration <= 0 then return 0 end
  local ttl = math.min(-floor(-duration / 1000), 1e15)
  return ARGV[1] == '' and ttl or ttl + 1e11
end

local function decide(key, op, name, limit, period, burst, a, b)
  local rule = opened[name] or open_rule(name)
  limit, period, burst = tonumber(limit), tonumber(period), tonumber(burst)
  if op == 'undo' then return rule.undo(key, a, b, now, limit, period, burst) end

  local state, wrong = rule.open(key)
  if wrong then return wrong end
  if op == 'adjust' then
    local new = rule.adjust(state, now, tonumber(a), tonumber(b), limit, period, burst, key)
    if not new then return 0 end
    local ttl = milliseconds(rule.reset_at(new, limit, period, burst) - now)
    if ttl > 0 then rule.save(new, ttl, key) else redis.call('DEL', key) end
    return 1
  end

  local patience = tonumber(b)
  local before = patience > 0 and rule.before(state) or nil
  local new, wait, remaining, reset_after =
    rule.admit(state, now, tonumber(a), patience, limit, period, burst, key)
  if new then
    local ttl = milliseconds(reset_after)
    if ttl > 0 then rule.save(new, ttl, key) else redis.call('DEL', key) end
    if wait > 0 and wait <= patience then
      return {number(wait), number(remaining), number(reset_after), number(now + wait),
        before, rule.written(new)}
    end
  end
  return {number(wait), number(remaining), number(reset_after)}
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
