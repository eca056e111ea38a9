-- Quotas over all gateway processes: admissions and settlements of one process, in one atomic call.
-- ARGV: prefix of all keys, id of the calling process, JSON list of operations; answers JSON, one result an operation.
--   {"a", prompt, completion, bounded, price, price, day, month, {subject, ...}}  admit: reserve on all, or on none
--   {"s", {name, ...}, reserved tokens, reserved cost, used tokens, used cost, day, month}  settle one admission
--   {"h", {{name, parallel, tokens, cost}, ...}}  what this process holds, whatever was known of it before
--   {"u", {{name, tokens, cost, day, month}, ...}}  used while nothing could be told
-- A subject is {name, requests/min, tokens/min, parallel, tokens/day, tokens/month, cost/month, used today, used this
-- month, cost this month, and these three with what the process has not delivered yet}; a limit of -1 is none.
-- Keys: w:NAME:r and :t (second -> amount), h:NAME (process:p|t|c -> held), d:NAME:DAY and m:NAME:MONTH (t, c), proc:ID.
-- Numbers are doubles: money is exact up to 9,007,199 units (2^53 nano-units).

local prefix, me, ops = ARGV[1], ARGV[2], cjson.decode(ARGV[3])
local clock = redis.call('TIME')
local now = tonumber(clock[1]) + tonumber(clock[2]) / 1e6
local second = math.floor(now)
local alive = {[me] = true}

local function text(number) return string.format('%.0f', number) end

local function is_alive(id)
  if alive[id] == nil then alive[id] = redis.call('EXISTS', prefix .. 'proc:' .. id) == 1 end
  return alive[id]
end

local function held(name)
  local key = prefix .. 'h:' .. name
  local found, sums = redis.call('HGETALL', key), {p = 0, t = 0, c = 0}
  for i = 1, #found, 2 do
    local id, kind = string.match(found[i], '^(.*):(.)$')
    if is_alive(id) then sums[kind] = sums[kind] + tonumber(found[i + 1])
    else redis.call('HDEL', key, found[i]) end
  end
  return sums
end

local function window(name, kind)
  local key = prefix .. 'w:' .. name .. ':' .. kind
  local found, steps, total = redis.call('HGETALL', key), {}, 0
  for i = 1, #found, 2 do
    local at, amount = tonumber(found[i]), tonumber(found[i + 1])
    if at + 61 <= now then redis.call('HDEL', key, found[i])
    else steps[#steps + 1] = {at, amount}; total = total + amount end
  end
  table.sort(steps, function(a, b) return a[1] < b[1] end)
  return total, steps
end

local function frees_in(steps, amount)
  local freed, at = 0, now
  for _, step in ipairs(steps) do
    if freed >= amount then break end
    freed, at = freed + step[2], step[1] + 61
  end
  return math.max(0, at - now)
end

local function add_to_window(name, kind, amount)
  local key = prefix .. 'w:' .. name .. ':' .. kind
  redis.call('HINCRBY', key, second, text(amount))
  redis.call('EXPIRE', key, 70)
end

-- What was used: by all processes as they told here, or as the master has counted, whichever is more.
local function used_in(key, field, base, seed)
  local known = redis.call('HGET', key, field)
  if known == false then
    redis.call('HSET', key, field, text(seed))
    redis.call('EXPIRE', key, 33 * 86400)
    known = seed
  end
  return math.max(tonumber(known), base)
end

local function use(name, tokens, cost, day, month)
  for key, has_cost in pairs({[prefix .. 'd:' .. name .. ':' .. day] = false, [prefix .. 'm:' .. name .. ':' .. month] = true}) do
    if redis.call('EXISTS', key) == 1 then
      redis.call('HINCRBY', key, 't', text(tokens))
      if has_cost then redis.call('HINCRBY', key, 'c', text(cost)) end
    end
  end
end

local function refuse(i, kind, limit, used, wanted, wait)
  return {0, i, kind, text(limit), text(used), text(wanted), wait}
end

-- kind, limit, base (surely used), used (with what is reserved) of a day or month; wait -2: until its end
local function fit(i, kind, limit, base, used, wanted, prompt, bounded)
  local left = limit - used
  if not bounded and left > prompt then return math.min(wanted, left) end
  local needed = bounded and wanted or prompt + 1
  if needed > limit then return nil, refuse(i, kind, limit, used, needed, -1) end
  if needed > left then return nil, refuse(i, kind, limit, used, needed, base + needed <= limit and -3 or -2) end
  return wanted
end

local function admit(op)
  local prompt, completion, bounded, pp, pc = op[2], op[3], op[4] == 1, op[5], op[6]
  local day, month, subjects = op[7], op[8], op[9]
  local tokens, seen = prompt + completion, {}
  for i, s in ipairs(subjects) do
    local name, wanted, h = s[1], prompt + completion, held(s[1])
    local requests, request_steps, minute, minute_steps = 0, {}, 0, {}
    if s[4] >= 0 and h.p >= s[4] then return refuse(i, 'parallel requests', s[4], h.p, 1, 1) end
    if s[2] >= 0 then
      requests, request_steps = window(name, 'r')
      if requests >= s[2] then
        return refuse(i, 'requests per minute', s[2], requests, 1, s[2] > 0 and frees_in(request_steps, 1) or -1)
      end
    end
    if s[3] >= 0 then
      minute, minute_steps = window(name, 't')
      if not bounded then wanted = math.min(wanted, math.max(s[3], prompt + 1)) end
      local used = minute + h.t
      if used + wanted > s[3] then
        local wait = wanted > s[3] and -1 or math.max(1, frees_in(minute_steps, used + wanted - s[3]))
        return refuse(i, 'tokens per minute', s[3], used, wanted, wait)
      end
    end
    local refused
    local day_key, month_key = prefix .. 'd:' .. name .. ':' .. day, prefix .. 'm:' .. name .. ':' .. month
    if s[5] >= 0 then
      local base = used_in(day_key, 't', s[8], s[11])
      wanted, refused = fit(i, 'tokens per day', s[5], base, base + h.t, wanted, prompt, bounded)
      if refused then return refused end
    end
    if s[6] >= 0 then
      local base = used_in(month_key, 't', s[9], s[12])
      wanted, refused = fit(i, 'tokens per month', s[6], base, base + h.t, wanted, prompt, bounded)
      if refused then return refused end
    end
    tokens = math.min(tokens, wanted)
    seen[i] = {h, requests, frees_in(request_steps, requests), minute, frees_in(minute_steps, minute)}
  end
  local cost = math.floor((prompt * pp + math.max(0, tokens - prompt) * pc) / 1000)
  for i, s in ipairs(subjects) do
    if s[7] >= 0 then
      local base = used_in(prefix .. 'm:' .. s[1] .. ':' .. month, 'c', s[10], s[13])
      local used = base + seen[i][1].c
      if used + cost > s[7] or used >= s[7] then
        return refuse(i, 'cost per month', s[7], used, cost, (base + cost <= s[7] and base < s[7]) and -3 or -2)
      end
    end
  end
  local rates = {}
  for i, s in ipairs(subjects) do
    local key, h = prefix .. 'h:' .. s[1], seen[i][1]
    if s[2] >= 0 then add_to_window(s[1], 'r', 1) end
    redis.call('HINCRBY', key, me .. ':p', 1)
    redis.call('HINCRBY', key, me .. ':t', text(tokens))
    redis.call('HINCRBY', key, me .. ':c', text(cost))
    redis.call('EXPIRE', key, 86400)
    rates[i] = {seen[i][2] + 1, seen[i][2] > 0 and seen[i][3] or 61, text(seen[i][4] + h.t + tokens), seen[i][5]}
  end
  return {1, text(tokens), text(cost), rates}
end

local function give_back(key, field, amount)
  local known = tonumber(redis.call('HGET', key, field) or '0')
  redis.call('HSET', key, field, text(math.max(0, known - amount)))
end

local function settle(op)
  for _, name in ipairs(op[2]) do
    local key = prefix .. 'h:' .. name
    give_back(key, me .. ':p', 1)
    give_back(key, me .. ':t', op[3])
    give_back(key, me .. ':c', op[4])
    if op[5] > 0 then add_to_window(name, 't', op[5]) end
    if op[5] > 0 or op[6] > 0 then use(name, op[5], op[6], op[7], op[8]) end
  end
  return 1
end

local results = {}
for i, op in ipairs(ops) do
  local kind = op[1]
  if kind == 'a' then results[i] = admit(op)
  elseif kind == 's' then results[i] = settle(op)
  elseif kind == 'h' then
    for _, one in ipairs(op[2]) do
      local key = prefix .. 'h:' .. one[1]
      redis.call('HSET', key, me .. ':p', text(one[2]), me .. ':t', text(one[3]), me .. ':c', text(one[4]))
      redis.call('EXPIRE', key, 86400)
    end
    results[i] = 1
  else
    for _, one in ipairs(op[2]) do
      if one[2] > 0 then add_to_window(one[1], 't', one[2]) end
      use(one[1], one[2], one[3], one[4], one[5])
    end
    results[i] = 1
  end
end
return cjson.encode(results)
