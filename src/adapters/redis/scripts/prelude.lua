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

local clock = redis.call('TIME')
local now = clock[1] * 1000000 + clock[2]

-- What is written waits until its key is read, or the script ends: many changes of one kind to one key are one command then, and
-- not many, of which each would cost what a command costs, also in the log. In their order: of each key, a list of commands.
local waiting = {}
-- Of the same kind: by how much fields of COUNTS change.
local counts = {}
-- The last number that was given out, once it was asked for.
local number
-- As many values as Lua can pass at a time, by far. Even: fields and values go together.
local VALUES_MAX = 2048

local function write(key)
  local commands = waiting[key]
  if not commands then return end
  waiting[key] = nil
  for _, values in ipairs(commands) do
    for i = 1, #values, VALUES_MAX do
      redis.call(values.command, key, unpack(values, i, math.min(i + VALUES_MAX - 1, #values)))
    end
  end
end

local function write_counts()
  local changes = counts
  counts = {}
  for field, by in pairs(changes) do
    local left = by ~= 0 and redis.call('HINCRBY', COUNTS, field, by)
    -- Those of a lane in all partitions are there while it has some.
    if left and left <= 0 and string.sub(field, 1, 1) == '\n' then redis.call('HDEL', COUNTS, field) end
  end
end

-- Does all that waits.
local function write_all()
  for _, key in ipairs(KEYS) do write(key) end
  write_counts()
  if number then redis.call('HSET', META, 'number', number) end
end

-- A change whose answer nobody wants: HSET or ZADD of one, HDEL or ZREM of one.
local function later(command, key, first, second)
  local commands = waiting[key]
  if not commands then
    commands = {}
    waiting[key] = commands
  end
  local values = commands[#commands]
  if not values or values.command ~= command then
    values = {command = command}
    commands[#commands + 1] = values
  end
  values[#values + 1] = first
  if second then values[#values + 1] = second end
end

-- Anything else: it sees what was changed before.
local function call(command, key, ...)
  write(key)
  if key == COUNTS then write_counts() end
  return redis.call(command, key, ...)
end

-- So that the order of texts is that of numbers.
local function digits(number)
  return string.format('%016.0f', number)
end

local function next_number()
  number = (number or tonumber(call('HGET', META, 'number') or '0')) + 1
  return number
end

-- A record, or nothing if it can not be read.
local function unpacked(raw)
  if not raw then return nil end
  local read, record = pcall(cmsgpack.unpack, raw)
  if read and type(record) == 'table' then return record end
end

-- States as they are stored, of those that were read or written: false if there is none.
local known = {}

local function read_states(ids)
  if #ids == 0 then return end
  for i, raw in ipairs(call('HMGET', STATES, unpack(ids))) do known[ids[i]] = raw end
end

local function save(id, c)
  local raw = cmsgpack.pack(c)
  known[id] = raw
  later('HSET', STATES, id, raw)
end

local function count(partition, what, by)
  local field = partition .. '\n' .. what
  counts[field] = (counts[field] or 0) + by
end

-- How many of a lane are leased, in all partitions.
local function count_leased(lane, by)
  local field = '\n' .. lane
  counts[field] = (counts[field] or 0) + by
end

-- Whether there is something for who waits.
local stirred = false

-- Ends a script that changes something, and tells who waits. A user that may not is none the worse for it: they look by themselves.
local function finish()
  write_all()
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
  later('ZADD', READY, 0, place_of(id, c))
  later('ZADD', SINCE, 0, since_of(id, c))
  save(id, c)
  stirred = true
end

-- It stands nowhere then: it has to be saved.
local function unready(id, c)
  later('ZREM', READY, place_of(id, c))
  later('ZREM', SINCE, since_of(id, c))
end

local function delay(id, c, ends)
  c.standing, c.ends = 'delayed', ends
  later('ZADD', TIMES, ends, event_of('d', id, c))
  count(c.partition, 'delayed', 1)
  save(id, c)
  -- They are to wait no longer than until then.
  stirred = true
end

local function undelay(id, c)
  later('ZREM', TIMES, event_of('d', id, c))
  count(c.partition, 'delayed', -1)
end

-- Whether the queue is the one that who asks has opened: it is not there any more if the server was emptied meanwhile.
local function is_as_opened(version, partitions)
  return call('HGET', META, 'version') == version and call('HGET', META, 'partitions') == partitions
end

local function unlease(id, c)
  later('ZREM', TIMES, event_of('l', id, c))
  count(c.partition, 'leased', -1)
  count_leased(c.lane, -1)
end

-- A dead letter from now on: it stands nowhere else.
local function bury(id, c, reason)
  later('ZREM', TIMES, event_of('e', id, c))
  if c.key then
    local keyed = unpacked(call('HGET', KEYED, c.key))
    if keyed and keyed.id == id then later('HDEL', KEYED, c.key) end
  end
  c.standing, c.ends, c.reason, c.failed, c.number = 'dead', nil, reason, now, next_number()
  later('ZADD', DEAD, c.number, id)
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
  local raw = known[id]
  if raw == nil then raw = call('HGET', STATES, id) end
  if not raw then return nil end
  local c = unpacked(raw)
  local needed = c and NEEDED_THERE[c.standing]
  return needed and c.v == 1 and has(c, NEEDED) and has(c, needed) and has(c, POSSIBLE, 'nil') and c or false
end

-- Does what has become due, at most so much of it. Whether that was all.
local function advance(most)
  local due = call('ZRANGEBYSCORE', TIMES, '-inf', now, 'WITHSCORES', 'LIMIT', 0, most)
  local ids = {}
  for i = 1, #due, 2 do ids[#ids + 1] = string.match(due[i], '^.%d+\n[^\n]*\n(.*)$') end
  read_states(ids)
  for i = 1, #due, 2 do
    local event, at = due[i], tonumber(due[i + 1])
    later('ZREM', TIMES, event)
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
    later('HDEL', (kind == 'e' and ENDED) or (kind == 'k' and KEYED) or RESULTS, name)
    later('ZREM', FORGET, memory)
  end
  write_all()
  return #due < 2 * most
end
