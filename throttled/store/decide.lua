-- Decides any number of groups in one run. Each rule has a Lua file of its own, beside its twin in
-- Python; they are put in where this one says so.
--
-- KEYS[i]: one key a group. ARGV[1]: now in µs, or '' for the server's TIME. Then for each group
-- op, rule, limit, period, burst, a, b:
--   admit   a = cost      b = patience in µs ('-inf': only look)
--   ticket  as admit, and a call that is admitted at once is told the slot it was booked for
--   admit+, ticket+       as those, but only together with the next group, and so on up to one
--           without the '+': all of them or none, each at the latest of their slots; of one patience
--   adjust  a = delta     b = slot in µs, '' = the newest
--   undo    a = written   b = before, both as an admit replied them
--   reset   a = b = ''    deletes the key, whatever it holds
--   once    a = µs        b = how many of the next groups are done only if the key, a mark that lasts
--           so long, was not there; else they reply 0 as this does. Never between groups with a '+'.
-- A group's reply stands in its own place: an array (admit, ticket), 1 or 0 (adjust, undo, reset,
-- once: was anything changed), or a string that says what is wrong. Each group is read in full before its
-- first write, so a bad one changes nothing; of those that go together, all are.
--
-- A rule's file sets `fields`, how many numbers its state has, and `rule`, which decides by them:
--   (op, now, a, b, soonest, limit, period, burst, state...)
--     -> wait, remaining, reset_after, new state...   (no new state: there is nothing to write)
-- A state of 2 fields may have two more at times.
-- A rule whose state is not a line of numbers has no fields, and reads and writes by itself:
--   (op, now, a, b, soonest, limit, period, burst, key)
--     -> wait, remaining, reset_after, after, before  (no `after`: nothing was written)
-- `soonest`: no slot is to lie before that instant (0: any may; -1: nothing may be written yet).
local replies = {}
local name, fields, rule
local limit_text, period_text, burst_text, limit, period, burst
-- Of groups that go together: the first one, how long the slowest has to wait, what is wrong with
-- one, whether all know by now what to write, and that: key, state, TTL.
local from, slowest, bad, whole, writes, written
-- Their second round, where the first could not say it all: with which patience, and from when on.
local again, again_from
local i, count = 1, #KEYS
while i <= count do
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
  local ticket, more
  if op == 'admit' then
    a, b = a + 0, b + 0
  elseif op == 'adjust' then
    a, b = a + 0, tonumber(b)
  elseif op ~= 'undo' and op ~= 'reset' and op ~= 'once' then
    ticket, more = op ~= 'admit+', op ~= 'ticket'
    a, b, op = a + 0, b + 0, 'admit'
    if more and not from then
      from, slowest, whole, written = i, 0, true, 0
      writes = writes or {'', '', 0, '', '', 0, '', '', 0}
    end
  end
  local patience, soonest = b, 0
  if from then
    if again then
      patience, soonest = again, again_from
    elseif not fields then
      whole, patience, soonest = false, -math.huge, -1  -- for it would write at once
    elseif b > 0 then
      patience = 0
    end
  end

  local reply, wait, remaining, reset_after, before, after
  local one, two, three, four
  if op == 'reset' then
    reply = try('DEL', key)
    if type(reply) == 'table' then reply = reply.err end
  elseif op == 'once' then
    reply = try('SET', key, 1, 'NX', 'PX', -floor(-a / 1000) + longer)
    reply = not reply and 0 or reply.err or 1
    if reply ~= 1 then
      for m = i, i + b do replies[m] = reply end
      i = i + b
    end
  elseif not fields then
    local fine
    fine, wait, remaining, reset_after, after, before =
      pcall(rule, op, now, a, patience, soonest, limit, period, burst, key)
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
      wait, remaining, reset_after, one, two, three, four =
        rule(op, now, a, patience, soonest, limit, period, burst, one, two, three, four)
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
    if fields and ttl > 0 and not from then
      reply = try('SET', key, after, 'PX', ttl + longer).err
    elseif from and not again and fields then
      writes[written + 1], writes[written + 2], writes[written + 3] = key, after, ttl + longer
      written = written + 3
    elseif bad then
      reply = bad
    elseif ttl > 0 and fields then
      reply = try('SET', key, after, 'PX', ttl + longer).err
    else
      local done = ttl > 0 and try('PEXPIRE', key, ttl + longer) or try('DEL', key)
      if type(done) == 'table' then reply = done.err end
    end
  end

  if reply then
    replies[i] = reply
  elseif op ~= 'admit' then
    replies[i] = after and 1 or 0
  else
    local slot
    if wait > 0 then
      slot = wait <= b and now + wait
      if from and wait > slowest then slowest = wait end
    end
    if after and (slot or ticket and wait == 0) then
      -- It is booked at the instant written, and never before that.
      local booked = fields and one or now + reset_after - period
      if not slot or booked > slot then slot = booked end
    end
    -- Integers while they are exact as such.
    if wait >= EXACT or reset_after >= EXACT then
      wait, reset_after = format('%.17g', wait), format('%.17g', reset_after)
    end
    if slot then
      replies[i] = {wait, remaining, reset_after, slot, before or '', after or ''}
    else
      replies[i] = {wait, remaining, reset_after}
    end
  end

  if from then
    bad = bad or reply
    if not more then
      if not (bad or again) and not (whole and (slowest == 0 or b < 0)) then
        -- Once more from the first one: all at the latest of their slots, or only looked at.
        if slowest <= b then
          again, again_from = math.huge, slowest > 0 and now + slowest or 0
        else
          again, again_from = -math.huge, 0
        end
        i, written = from - 1, 0
      else
        for w = 1, bad and 0 or written, 3 do
          local done = writes[w + 2] > longer
            and try('SET', writes[w], writes[w + 1], 'PX', writes[w + 2]) or try('DEL', writes[w])
          if type(done) == 'table' and done.err then
            -- A server out of memory refuses the first write, if any.
            bad = done.err
            break
          end
        end
        for m = from, bad and i or 0 do replies[m] = bad end
        from, bad, again = nil, nil, nil
      end
    end
  end
  i = i + 1
end
return replies
