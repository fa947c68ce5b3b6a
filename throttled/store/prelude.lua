-- Shared by every rule. A run pays for each function it makes, so what few calls need is made late.
local floor, format = math.floor, string.format
local unpack = unpack or table.unpack
local call = redis.call
local EXACT = 9007199254740992  -- whole doubles are exact below this
local now, milliseconds

-- A number in full. '%d' writes the same digits faster.
local function text(value)
  if value < EXACT and value > -EXACT then return format('%d', value) end
  return format('%.17g', value)
end

-- The number that a text holds, or nil when it holds none, or none that is finite.
local function whole(value)
  value = value and tonumber(value)
  if value and value - value == 0 then return value end
end

-- The state of most rules: a string of two numbers or four.
local function read(key, fields)
  local raw = redis.pcall('GET', key)
  if not raw then return nil end
  if type(raw) == 'table' then return nil, raw.err end
  local a, b, c, d
  if fields == 2 then
    local gap = raw:find(' ', 1, true)
    if gap then a, b = whole(raw:sub(1, gap - 1)), whole(raw:sub(gap + 1)) end
  else
    a, b, c, d = raw:match('^(%S+) (%S+) (%S+) (%S+)$')
    a, b, c, d = whole(a), whole(b), whole(c), whole(d)
  end
  if not (a and b) or (fields == 4 and not (c and d)) then
    return nil, 'damaged state: ' .. raw:sub(1, 100)
  end
  return {a, b, c, d, raw = raw}
end

local function written(state)
  local a, b, c, d = state[1], state[2], state[3], state[4]
  if not c then
    if b < EXACT and b > -EXACT then return format('%d %d', a, b) end
    return format('%.17g %.17g', a, b)
  end
  if b < EXACT and c < EXACT and d < EXACT then return format('%d %d %d %d', a, b, c, d) end
  return format('%.17g %.17g %.17g %.17g', a, b, c, d)
end
