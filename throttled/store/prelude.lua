-- What stands before everything: the clock, and short names for what groups call.
--
-- A run pays for each function that it makes, and twice as much for each local outside of it that
-- the function refers to. So a rule is one function, made when a group asks for it, and refers to
-- none of these.
local floor, tonumber, type = math.floor, tonumber, type
local format, find, sub = string.format, string.find, string.sub
local KEYS, ARGV, try = KEYS, ARGV, redis.pcall
local EXACT = 2 ^ 53  -- whole doubles are exact below this

-- A fixed now belongs to another clock than the server's, so its keys outlive any test.
local now, longer = ARGV[1], 1e11
if now ~= '' then
  now = now + 0
else
  local time = redis.call('TIME')
  now, longer = time[1] * 1000000 + time[2], 0
end

