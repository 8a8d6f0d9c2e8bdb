-- Ends leases in the name of who has them: one answer for each.
-- ARGV: how long keys are kept, then six for each: id, fence, what ('done', 'failed', 'retry', 'release' or 'dead'), the reason
-- of a dead letter, the result, the delay of a retry. Times in microseconds.

local window = tonumber(ARGV[1])

local function forget_later(kind, name, after)
  later('ZADD', FORGET, now + after, kind .. name)
end

-- Of a lane with limits, others may take one now.
local limited = {}
local function make_room(lane)
  if limited[lane] == nil then limited[lane] = call('HEXISTS', LIMITS, lane) == 1 end
  stirred = stirred or limited[lane]
end

-- It has ended well.
local function remove(id, c)
  known[id] = false
  later('HDEL', COMMANDS, id)
  later('HDEL', STATES, id)
  if c.expires then later('ZREM', TIMES, event_of('e', id, c)) end
  later('HSET', ENDED, id, cmsgpack.pack({fence = c.fence, print = c.print, ends = now + ID_MEMORY}))
  forget_later('e', id, ID_MEMORY)
  -- Of a replayed one, other work may have the key.
  local keyed = c.key and unpacked(call('HGET', KEYED, c.key))
  if keyed and keyed.id == id then
    later('HSET', KEYED, c.key, cmsgpack.pack({id = id, print = c.print, ends = now + window}))
    forget_later('k', c.key, window)
  end
end

-- What a token says whose lease was ended by who had it: by the same as now, or by something else.
local function again(by, what)
  return by == what and 'again' or 'before'
end

-- A command that goes on has other leases later. What has ended this one is remembered beside it, for who does not hear of it.
local function remember(id, fence, what)
  local name = id .. '\n' .. digits(fence)
  later('HSET', ENDED, name, cmsgpack.pack({what = what, ends = now + ID_MEMORY}))
  forget_later('e', name, ID_MEMORY)
end

local function earlier(id, fence, what)
  local ended = unpacked(call('HGET', ENDED, id .. '\n' .. digits(fence)))
  return ended and ended.ends > now and ended.what == what and 'again' or 'lost'
end

local function settle(id, fence, what, reason, result, wait)
  local c = load(id)
  if not c then
    local ended = unpacked(call('HGET', ENDED, id))
    if ended and ended.ends > now and ended.fence == fence then return again('done', what) end
    return earlier(id, fence, what)
  end
  if c.standing ~= 'leased' or c.fence ~= fence then
    if c.settled == fence and fence > 0 then return again(c.by, what) end
    return earlier(id, fence, what)
  end
  unlease(id, c)
  make_room(c.lane)
  if c.ends <= now then
    back(id, c, c.ends)
    return 'lost'
  end
  c.settled, c.by = fence, what
  if c.keep and (what == 'done' or what == 'failed') then
    later('HSET', RESULTS, id, cmsgpack.pack({result = result, ends = now + c.keep}))
    forget_later('r', id, c.keep)
    stirred = true
  end
  if what ~= 'done' then remember(id, fence, what) end
  if what == 'done' then
    remove(id, c)
  elseif what == 'release' then
    c.deliveries = c.deliveries - 1
    give_back(id, c, now)
  elseif what == 'retry' then
    c.retries = c.retries + 1
    if c.deliveries >= c.max then
      bury(id, c, reason)
    elseif wait > 0 and not is_expired(c) then
      delay(id, c, now + wait)
    else
      give_back(id, c, now)
    end
  else
    bury(id, c, reason)
  end
  return 'done'
end

local ids = {}
for i = 2, #ARGV, 6 do ids[#ids + 1] = ARGV[i] end
read_states(ids)

local outcomes = {}
for i = 2, #ARGV, 6 do
  local fence, wait = tonumber(ARGV[i + 1]), tonumber(ARGV[i + 5])
  outcomes[#outcomes + 1] = settle(ARGV[i], fence, ARGV[i + 2], ARGV[i + 3], ARGV[i + 4], wait)
end
finish()
return outcomes
