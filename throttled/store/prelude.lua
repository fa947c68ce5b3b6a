-- Shared by every rule.
local floor = math.floor
local unpack = unpack or table.unpack
local EXACT = 9007199254740992  -- whole doubles are exact below this
local milliseconds

local function text(value) return string.format('%.17g', value) end

-- A number as a reply: an integer while it is exact as one.
local function number(value)
  if value < EXACT then return value end
  return text(value)
end

-- The number that a text holds, or nil when it holds none, or none that is finite.
local function whole(value)
  value = value and tonumber(value)
  if value and value - value == 0 then return value end
end

-- The state of most rules: a string of a few numbers.
local strings = {}
local shapes = {[2] = '^(%S+) (%S+)$', [4] = '^(%S+) (%S+) (%S+) (%S+)$'}

function strings.open(key, fields)
  local raw = redis.pcall('GET', key)
  if not raw then return nil end
  if type(raw) == 'table' then return nil, raw.err end
  local a, b, c, d = raw:match(shapes[fields])
  a, b, c, d = whole(a), whole(b), whole(c), whole(d)
  if not (a and b) or (fields == 4 and not (c and d)) then
    return nil, 'damaged state: ' .. raw:sub(1, 100)
  end
  return {a, b, c, d, raw = raw}
end

function strings.save(state, ttl, key)
  redis.call('SET', key, strings.written(state), 'PX', ttl)
end

function strings.before(state) return state and state.raw or '' end

function strings.written(state)
  if #state == 2 then return string.format('%.17g %.17g', state[1], state[2]) end
  return string.format('%.17g %.17g %.17g %.17g', state[1], state[2], state[3], state[4])
end

local rules = {}
local opened = {}

local function open_rule(name)
  local rule = rules[name]()
  opened[name] = rule
  if rule.fields then
    local fields = rule.fields
    rule.open = function(key) return strings.open(key, fields) end
    rule.save, rule.before, rule.written = strings.save, strings.before, strings.written
    rule.undo = function(key, written, before, now, limit, period, burst)
      local raw = redis.pcall('GET', key)
      if type(raw) == 'table' then error(raw.err, 0) end
      if raw ~= written then return 0 end
      local ttl = 0
      if before ~= '' then
        local a, b, c, d = before:match(shapes[rule.fields])
        local state = {whole(a), whole(b), whole(c), whole(d)}  -- as this script wrote it
        ttl = milliseconds(rule.reset_at(state, limit, period, burst) - now)
      end
      if ttl > 0 then redis.call('SET', key, before, 'PX', ttl) else redis.call('DEL', key) end
      return 1
    end
  end
  return rule
end
