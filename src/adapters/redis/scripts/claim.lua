-- Takes commands of a partition.
-- ARGV: partition, at most, lease (microseconds), at most so many bytes, then for each lane: its name, at most. No lanes: all,
-- the best priorities first.
-- Answers: 'more' if there may be more at once, else 'all'; when it is worth asking again, in microseconds from now (-1: not
-- known); what was taken.

local partition, most, lease, bytes = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])

-- Order holds for what is due as well: so nothing is taken before all of that has its place.
if not advance(128) then return {'more', 0, {}} end

local taken, again = {}, nil
-- How many were taken of a lane.
local taken_of = {}
-- Whether there was one that could not be read.
local skipped = false
local fence = tonumber(call('HGET', META, 'fence') or '0')

local function ask_again(at)
  if at and (not again or at < again) then again = at end
end

local limits = {}
local function limits_of(lane)
  if limits[lane] == nil then limits[lane] = unpacked(call('HGET', LIMITS, lane)) or false end
  return limits[lane]
end

-- Whether a rate lets one more start now; else when.
local function start(lane, limit)
  local prefix = lane .. '\n'
  if limit.kind == 'bucket' then
    -- When the bucket is full again, if nothing more is taken.
    local full = math.max(limit.full or 0, now) + limit.interval
    local wait = full - now - limit.interval * limit.burst
    -- What rounding adds is no wait.
    if wait > 0.5 then return false, now + math.ceil(wait) end
    limit.full = full
    later('HSET', LIMITS, lane, cmsgpack.pack(limit))
  elseif limit.kind == 'window' then
    local old = call('ZRANGEBYLEX', STARTS, '[' .. prefix, '[' .. prefix .. digits(now - limit.window) .. '\255', 'LIMIT', 0, 256)
    for _, member in ipairs(old) do later('ZREM', STARTS, member) end
    local range = '[' .. prefix .. digits(now - limit.window) .. '\255'
    local started = call('ZLEXCOUNT', STARTS, range, '(' .. lane .. '\11')
    if started >= limit.commands then
      local first = call('ZRANGEBYLEX', STARTS, range, '(' .. lane .. '\11', 'LIMIT', started - limit.commands, 1)[1]
      return false, tonumber(string.sub(first, #prefix + 1, #prefix + 16)) + limit.window + 1
    end
    later('ZADD', STARTS, 0, prefix .. digits(now) .. digits(next_number()))
  end
  return true
end

-- Whether one more of the lane may be taken.
local function admit(lane)
  local limit = limits_of(lane)
  if not limit then return true end
  if limit.leased then
    local leased = tonumber(call('HGET', COUNTS, '\n' .. lane) or '0') + (taken_of[lane] or 0)
    if leased >= limit.leased then return false end
  end
  local may, at = start(lane, limit)
  ask_again(at)
  return may
end

local function id_at(lane, member)
  return string.sub(member, #lane_of(partition, lane) + 19)
end

-- Takes the one that stands at this place, if it can be read.
local function take(lane, member)
  local id = id_at(lane, member)
  local c = load(id)
  local command = call('HGET', COMMANDS, id)
  if not c or not command or c.standing ~= 'ready' then
    skipped = true
    later('ZREM', READY, member)
    if c == false then
      put_aside(id, partition, lane, 'r')
    elseif c and c.standing == 'ready' then
      unready(id, c)
      bury(id, c, '{"kind":"undecodable","error":"the command itself is not there"}')
    end
    return
  end
  later('ZREM', READY, member)
  later('ZREM', SINCE, since_of(id, c))
  -- Higher than any before, also where the server has lost the last ones.
  fence = math.max(fence + 1, now)
  c.standing, c.since, c.ends, c.fence, c.deliveries = 'leased', nil, now + lease, fence, c.deliveries + 1
  later('ZADD', TIMES, c.ends, event_of('l', id, c))
  save(id, c)
  taken_of[lane] = (taken_of[lane] or 0) + 1
  taken[#taken + 1] = {id, fence, c.deliveries, c.retries, c.priority, lane, command}
  bytes = bytes - #command
end

-- The first ones of a lane.
local function first(lane, many)
  local prefix = lane_of(partition, lane)
  return call('ZRANGEBYLEX', READY, '[' .. prefix, '(' .. partition .. '\n' .. lane .. '\11', 'LIMIT', 0, many)
end

local function room()
  return #taken < most and bytes > 0
end

if #ARGV > 4 then
  for i = 5, #ARGV, 2 do
    local lane, left = ARGV[i], math.min(tonumber(ARGV[i + 1]), most - #taken)
    local members, ids = left > 0 and first(lane, left) or {}, {}
    for _, member in ipairs(members) do ids[#ids + 1] = id_at(lane, member) end
    read_states(ids)
    for _, member in ipairs(members) do
      if not room() or not admit(lane) then break end
      take(lane, member)
    end
  end
else
  -- The first of each lane.
  local heads = {}
  local from, last = '[' .. partition .. '\n', '(' .. partition .. '\11'
  while true do
    local member = call('ZRANGEBYLEX', READY, from, last, 'LIMIT', 0, 1)[1]
    if not member then break end
    local lane = string.match(member, '^%d+\n([^\n]*)\n')
    if lane then
      heads[lane] = member
      from = '[' .. partition .. '\n' .. lane .. '\11'
    else
      -- No place of ours.
      later('ZREM', READY, member)
    end
  end
  while room() do
    local best, order
    for lane, member in pairs(heads) do
      local its = string.sub(member, #lane_of(partition, lane) + 1)
      if not order or its < order then best, order = lane, its end
    end
    if not best then break end
    if admit(best) then
      take(best, heads[best])
      heads[best] = first(best, 1)[1]
    else
      heads[best] = nil
    end
  end
end

if #taken > 0 then
  later('HSET', META, 'fence', fence)
  count(partition, 'leased', #taken)
  for lane, many in pairs(taken_of) do count_leased(lane, many) end
end
local next_event = call('ZRANGE', TIMES, 0, 0, 'WITHSCORES')[2]
ask_again(next_event and tonumber(next_event))
write_all()
return {room() and not skipped and 'all' or 'more', again and math.max(again - now, 0) or -1, taken}
