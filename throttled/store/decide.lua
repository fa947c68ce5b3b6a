-- Decides any number of groups in one run. Each rule has a Lua file of its own, beside its twin in
-- Python; they are put in where this one says so.
--
-- KEYS[i]: one key a group. ARGV[1]: now in µs, or '' for the server's TIME. Then for each group
-- op, rule, limit, period, burst, a, b:
--   admit   a = cost      b = patience in µs ('-inf': only look)
--   join    as admit, and only together with the next group, and so on up to one that is no join:
--           all of them or none, with the patience of the last, each at the latest of their slots
--   ticket  as admit, and a call that is admitted at once is told the slot it was booked for
--   adjust  a = delta     b = slot in µs, '' = the newest
--   undo    a = written   b = before, both as an admit replied them
--   reset   a = b = ''    deletes the key, whatever it holds
-- A group's reply stands in its own place: an array (admit, join, ticket), 1 or 0 (adjust, undo,
-- reset: was anything changed), or a string that says what is wrong. Each group is read in full
-- before its first write, so a bad one changes nothing; of those that are joined, all are.
--
-- A rule's file sets `fields`, how many numbers its state has, and `rule`, which decides by them:
--   (op, now, a, b, soonest, limit, period, burst, state...)
--     -> wait, remaining, reset_after, new state...   (no new state: there is nothing to write)
-- A rule with 2 fields may add two more of them.
-- A rule whose state is not a line of numbers has no fields, and reads and writes by itself:
--   (op, now, a, b, soonest, limit, period, burst, key)
--     -> wait, remaining, reset_after, after, before  (no `after`: nothing was written)
-- `soonest`: no slot before that instant (0: any).
local replies = {}
local name, fields, rule
local limit_text, period_text, burst_text, limit, period, burst
local joined  -- the groups of a joint so far
for i = 1, #KEYS do
  local key, j = KEYS[i], 7 * i - 5
  local op, a, b = ARGV[j], ARGV[j + 5], ARGV[j + 6]
  -- Mostly, rule and quota are those of the group before.
  if ARGV[j + 1] ~= name then
    name = ARGV[j + 1]
    --[[ the rules ]]
  end
  if ARGV[j + 2] ~= limit_text or ARGV[j + 3] ~= period_text or ARGV[j + 4] ~= burst_text then
    limit_text, period_text, burst_text = ARGV[j + 2], ARGV[j + 3], ARGV[j + 4]
    limit, period, burst = limit_text + 0, period_text + 0, burst_text + 0
  end
  local kind, patience = op, nil
  if op == 'admit' then
    a, b = a + 0, b + 0
  elseif op == 'adjust' then
    a, b = a + 0, tonumber(b)
  elseif op == 'join' or op == 'ticket' then
    a, b, op = a + 0, b + 0, 'admit'
    if kind == 'join' and not joined then joined = {from = i} end
  end
  patience = b
  -- Of those that are joined, what fits now is worked out at once, but written later.
  if joined and b > 0 then patience = 0 end

  local reply, wait, remaining, reset_after, before, after
  local one, two, three, four
  if op == 'reset' then
    reply = try('DEL', key)
    if type(reply) == 'table' then reply = reply.err end
  elseif not fields then
    if joined then patience = -math.huge end
    local fine
    fine, wait, remaining, reset_after, after, before =
      pcall(rule, op, now, a, patience, 0, limit, period, burst, key)
    if not fine then reply = type(wait) == 'table' and wait.err or wait end
  else
    local held = try('GET', key)
    local text = held
    if type(held) == 'table' then
      reply = held.err
    elseif op == 'undo' then
      if held ~= a then reply = 0 end
      text = b ~= '' and b
    end

    if text and not reply then
      local sum
      if fields == 2 then
        local gap = find(text, ' ', 1, true)
        if gap then one, two = tonumber(sub(text, 1, gap - 1)), tonumber(sub(text, gap + 1)) end
        sum = one and two and one + two
      end
      if not sum then
        one, two, three, four = text:match('^([^ ]+) ([^ ]+) ([^ ]+) ([^ ]+)$')
        one, two, three, four = tonumber(one), tonumber(two), tonumber(three), tonumber(four)
        sum = one and two and three and four and one + two + three + four
      end
      -- The difference is nan where a number is nan or infinite.
      if not sum or sum - sum ~= 0 then reply = 'damaged state: ' .. sub(text, 1, 100) end
    end

    if op == 'undo' and not reply then
      after, reset_after = b, 0
      if one then
        -- Looked at from its own instant, so that it counts as it stands.
        wait, remaining, reset_after =
          rule('admit', one, 0, -math.huge, 0, limit, period, burst, one, two, three, four)
        reset_after = one + reset_after - now
      end
    elseif not reply then
      before = held or ''
      if joined then joined[i] = {one, two, three, four} end
      wait, remaining, reset_after, one, two, three, four =
        rule(op, now, a, patience, 0, limit, period, burst, one, two, three, four)
    end
  end

  -- All of a joint are answered, and written, with the last of them.
  local first = i
  if joined then
    joined[i] = {
      key, fields, rule, a, limit, period, burst, before, wait, remaining, reset_after,
      now = {one, two, three, four}, found = joined[i],
    }
    joined.bad = joined.bad or reply
    joined.wait = math.max(joined.wait or 0, wait or 0)
    first = kind == 'join' and i + 1 or joined.from
  end
  for m = first, i do
    local mine = joined and joined[m]
    if mine then
      reply = joined.bad
      key, fields, rule, a, limit, period, burst, before, wait, remaining, reset_after =
        unpack(mine, 1, 11)
      one, two, three, four = unpack(mine.now, 1, 4)
      after = nil
      local taken = joined.wait <= b
      if not reply and taken and (joined.wait > 0 or not fields) then
        -- Once more, from where it was: all at the latest of their slots.
        local soonest = joined.wait > 0 and now + joined.wait or 0
        if fields then
          local found = mine.found
          wait, remaining, reset_after, one, two, three, four = rule('admit', now, a, math.huge,
            soonest, limit, period, burst, found[1], found[2], found[3], found[4])
        else
          local fine
          fine, wait, remaining, reset_after, after, before =
            pcall(rule, 'admit', now, a, math.huge, soonest, limit, period, burst, key)
          if not fine then reply = type(wait) == 'table' and wait.err or wait end
        end
      elseif not reply and not taken and wait == 0 and b >= 0 and fields then
        local found = mine.found
        wait, remaining, reset_after, one, two, three, four = rule('admit', now, a, -math.huge,
          0, limit, period, burst, found[1], found[2], found[3], found[4])
      end
    end

    if one and not after and not reply then
      if three then
        local exact = two < EXACT and two > -EXACT and three < EXACT and four < EXACT
        after = format(exact and '%d %d %d %d' or '%.17g %.17g %.17g %.17g', one, two, three, four)
      else
        -- '%d' writes the same digits faster.
        local exact = two < EXACT and two > -EXACT
        after = format(exact and '%d %d' or '%.17g %.17g', one, two)
      end
    end

    -- A key lasts until its state equals that of a key never seen.
    if after and not reply then
      local ttl = -floor(-reset_after / 1000)
      if ttl > 1e15 then ttl = 1e15 end
      if ttl > 0 and fields then
        reply = try('SET', key, after, 'PX', ttl + longer).err
      else
        local done = ttl > 0 and try('PEXPIRE', key, ttl + longer) or try('DEL', key)
        if type(done) == 'table' then reply = done.err end
      end
      -- A server out of memory refuses the first write, if any.
      if mine then joined.bad = reply end
    end

    if reply then
      replies[m] = reply
    elseif op ~= 'admit' then
      replies[m] = after and 1 or 0
    else
      local slot = wait > 0 and wait <= b and now + wait
      if kind == 'ticket' and wait == 0 and after then
        slot = fields and one or now + reset_after - period
      end
      -- Integers while they are exact as such.
      if wait >= EXACT or reset_after >= EXACT then
        wait, reset_after = format('%.17g', wait), format('%.17g', reset_after)
      end
      if slot then
        replies[m] = {wait, remaining, reset_after, slot, before or '', after or ''}
      else
        replies[m] = {wait, remaining, reset_after}
      end
    end
  end
  if joined and kind ~= 'join' then
    if joined.bad then
      for m = joined.from, i do replies[m] = joined.bad end
    end
    joined, name, limit_text = nil, nil, nil
  end
end
return replies
