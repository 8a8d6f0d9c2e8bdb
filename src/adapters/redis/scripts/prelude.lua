-- What all scripts begin with: the queue's keys, the time, and how a command goes from one standing to another.
--
-- Times are microseconds of the server's clock: with 2^53 as the limit of exact numbers, until the year 2255.
-- A command's state is one record (cmsgpack), in STATES under its id:
--   v          version of the record: 1
--   standing   'ready', 'delayed', 'leased' or 'dead'
--   partition, lane, priority, print (fingerprint), max (deliveries), keep (result, for so long), key: as it was enqueued
--   place      its place among those of its priority; none while it is delayed for the first time
--   since      ready since; ends: when the delay, or the lease, ends; expires: when it does, if ever
--   fence      of its last lease; settled: of the last lease that was ended by who had it; by: what that was
--   deliveries, retries
--   reason, failed, number: of a dead letter: why (JSON), when, its place among the dead
-- No name has control characters in it: so line feeds separate them in members of sorted sets.

local META, COMMANDS, STATES, READY, SINCE = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local TIMES, COUNTS, DEAD, KEYED, ENDED = KEYS[6], KEYS[7], KEYS[8], KEYS[9], KEYS[10]
local RESULTS, FORGET, LIMITS, STARTS, DAMAGED = KEYS[11], KEYS[12], KEYS[13], KEYS[14], KEYS[15]

-- Not a key, but named like one.
local CHANNEL = string.gsub(META, ':meta$', ':stirred')

local ID_MEMORY = 300 * 1000000

local call = redis.call
local clock = call('TIME')
local now = clock[1] * 1000000 + clock[2]

-- So that the order of texts is that of numbers.
local function digits(number)
  return string.format('%016.0f', number)
end

local function next_number()
  return call('HINCRBY', META, 'number', 1)
end

-- A record, or nothing if it can not be read.
local function unpacked(raw)
  if not raw then return nil end
  local read, record = pcall(cmsgpack.unpack, raw)
  if read and type(record) == 'table' then return record end
end

local function save(id, c)
  call('HSET', STATES, id, cmsgpack.pack(c))
end

local function count(partition, what, by)
  call('HINCRBY', COUNTS, partition .. '\n' .. what, by)
end

-- How many of a lane are leased, in all partitions.
local function count_leased(lane, by)
  local field = '\n' .. lane
  if call('HINCRBY', COUNTS, field, by) <= 0 then call('HDEL', COUNTS, field) end
end

-- Whether there is something for who waits.
local stirred = false

-- Tells them, at the end of a script. A user that may not is none the worse for it: they look by themselves.
local function stir()
  if stirred then redis.pcall('PUBLISH', CHANNEL, '') end
end

-- Ready commands of a partition and a lane stand together, in their order.
local function lane_of(partition, lane)
  return partition .. '\n' .. lane .. '\n'
end

local function place_of(id, c)
  return lane_of(c.partition, c.lane) .. string.format('%02d', c.priority) .. digits(c.place) .. id
end

local function since_of(id, c)
  return c.partition .. '\n' .. digits(c.since) .. id
end

-- What happens to a command by itself: 'd' its delay ends, 'l' its lease ends, 'e' it expires.
local function event_of(kind, id, c)
  return kind .. c.partition .. '\n' .. c.lane .. '\n' .. id
end

local function ready(id, c, at)
  c.standing, c.since, c.ends = 'ready', at, nil
  call('ZADD', READY, 0, place_of(id, c))
  call('ZADD', SINCE, 0, since_of(id, c))
  save(id, c)
  stirred = true
end

-- It stands nowhere then: it has to be saved.
local function unready(id, c)
  call('ZREM', READY, place_of(id, c))
  call('ZREM', SINCE, since_of(id, c))
end

local function delay(id, c, ends)
  c.standing, c.ends = 'delayed', ends
  call('ZADD', TIMES, ends, event_of('d', id, c))
  count(c.partition, 'delayed', 1)
  save(id, c)
  -- They are to wait no longer than until then.
  stirred = true
end

local function undelay(id, c)
  call('ZREM', TIMES, event_of('d', id, c))
  count(c.partition, 'delayed', -1)
end

-- Whether the queue is the one that who asks has opened: it is not there any more if the server was emptied meanwhile.
local function is_as_opened(version, partitions)
  return call('HGET', META, 'version') == version and call('HGET', META, 'partitions') == partitions
end

local function unlease(id, c)
  call('ZREM', TIMES, event_of('l', id, c))
  count(c.partition, 'leased', -1)
  count_leased(c.lane, -1)
end

-- A dead letter from now on: it stands nowhere else.
local function bury(id, c, reason)
  call('ZREM', TIMES, event_of('e', id, c))
  if c.key then
    local keyed = unpacked(call('HGET', KEYED, c.key))
    if keyed and keyed.id == id then call('HDEL', KEYED, c.key) end
  end
  c.standing, c.ends, c.reason, c.failed, c.number = 'dead', nil, reason, now, next_number()
  call('ZADD', DEAD, c.number, id)
  count(c.partition, 'dead', 1)
  save(id, c)
end

local function is_expired(c)
  return c.expires and c.expires <= now
end

-- It is not leased any more: ready again, if there is time left.
local function give_back(id, c, at)
  if is_expired(c) then
    bury(id, c, '{"kind":"expired"}')
  else
    ready(id, c, at)
  end
end

-- Its lease has ended by itself.
local function back(id, c, at)
  if c.deliveries >= c.max then
    bury(id, c, '{"kind":"too_many_deliveries"}')
  else
    give_back(id, c, at)
  end
end

-- What can not be read is put aside as it is, and there is a dead letter in its place. `from` is what led to it.
local function put_aside(id, partition, lane, from)
  call('HSET', DAMAGED, id, call('HGET', STATES, id) or '')
  local c = {
    v = 1, partition = tonumber(partition), lane = lane, priority = 32, print = '', max = 20, fence = 0, settled = 0,
    deliveries = 0, retries = 0,
  }
  -- What else was to happen to it tells how it stood: what led to it may be another thing.
  if call('ZREM', TIMES, event_of('l', id, c)) == 1 or from == 'l' then
    count(partition, 'leased', -1)
    count_leased(lane, -1)
  end
  if call('ZREM', TIMES, event_of('d', id, c)) == 1 or from == 'd' then count(partition, 'delayed', -1) end
  bury(id, c, '{"kind":"undecodable","error":"its state can not be read: it was put aside"}')
end

local NEEDED = {
  standing = 'string', partition = 'number', lane = 'string', priority = 'number', print = 'string', max = 'number',
  fence = 'number', settled = 'number', deliveries = 'number', retries = 'number',
}
local POSSIBLE = {
  place = 'number', since = 'number', ends = 'number', expires = 'number', keep = 'number', key = 'string',
  failed = 'number', reason = 'string', by = 'string',
}
local NEEDED_THERE = {
  ready = {since = 'number', place = 'number'}, delayed = {ends = 'number'}, leased = {ends = 'number', place = 'number'},
  dead = {},
}

local function has(c, fields, or_kind)
  for field, kind in pairs(fields) do
    local is = type(c[field])
    if is ~= kind and is ~= or_kind then return false end
  end
  return true
end

-- The state of a command. Nothing if there is none; false if it can not be read.
local function load(id)
  local raw = call('HGET', STATES, id)
  if not raw then return nil end
  local c = unpacked(raw)
  local needed = c and NEEDED_THERE[c.standing]
  return needed and c.v == 1 and has(c, NEEDED) and has(c, needed) and has(c, POSSIBLE, 'nil') and c or false
end

-- Does what has become due, at most so much of it. Whether that was all.
local function advance(most)
  local due = call('ZRANGEBYSCORE', TIMES, '-inf', now, 'WITHSCORES', 'LIMIT', 0, most)
  for i = 1, #due, 2 do
    local event, at = due[i], tonumber(due[i + 1])
    call('ZREM', TIMES, event)
    local kind, partition, lane, id = string.match(event, '^(.)(%d+)\n([^\n]*)\n(.*)$')
    local c = id and load(id)
    if c == false then
      put_aside(id, partition, lane, kind)
    elseif not c then
      -- It is gone; or this is no event of ours.
    elseif kind == 'd' and c.standing == 'delayed' then
      -- A new one gets its place now; one that comes back has it.
      c.place = c.place or next_number()
      undelay(id, c)
      ready(id, c, at)
    elseif kind == 'l' and c.standing == 'leased' then
      unlease(id, c)
      back(id, c, at)
    elseif kind == 'e' and c.standing == 'ready' then
      unready(id, c)
      bury(id, c, '{"kind":"expired"}')
    elseif kind == 'e' and c.standing == 'delayed' then
      undelay(id, c)
      bury(id, c, '{"kind":"expired"}')
    end
  end
  -- And forgets what was kept for a time: 'e' an id that has ended, 'k' an idempotency key, 'r' a result.
  for _, memory in ipairs(call('ZRANGEBYSCORE', FORGET, '-inf', now, 'LIMIT', 0, 2 * most)) do
    local kind, name = string.sub(memory, 1, 1), string.sub(memory, 2)
    call('HDEL', (kind == 'e' and ENDED) or (kind == 'k' and KEYED) or RESULTS, name)
    call('ZREM', FORGET, memory)
  end
  return #due < 2 * most
end
