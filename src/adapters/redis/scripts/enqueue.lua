-- Puts commands into the queue: one answer for each. Or 'open' if the queue is not there any more, 'more' if there is more to do
-- before: then nothing was put in.
-- ARGV: version, partitions, then twelve for each: id, fingerprint, partition, lane, priority, delay, expires after (-1: never), deliveries, keep the
-- result for (-1: not), idempotency key ('': none), retries, the command itself. Times in microseconds.

if not is_as_opened(ARGV[1], ARGV[2]) then return 'open' end

-- What is due stands before what comes now.
if not advance(128) then return 'more' end

local ids, ended_of = {}, {}
for i = 3, #ARGV, 12 do ids[#ids + 1] = ARGV[i] end
read_states(ids)
for i, raw in ipairs(#ids > 0 and call('HMGET', ENDED, unpack(ids)) or {}) do ended_of[ids[i]] = raw end

local function duplicate(id, print, key)
  local known
  local c = load(id)
  if c ~= nil then
    known = c and c.print or ''
  else
    local ended = unpacked(ended_of[id])
    known = ended and ended.ends > now and ended.print
  end
  if known then
    return known == print and {'duplicate', id} or {'id', id}
  end
  local keyed = key ~= '' and unpacked(call('HGET', KEYED, key))
  if not keyed then return nil end
  if keyed.ends then
    if keyed.ends <= now then return nil end
  else
    -- Of one that was put aside, nobody could free it.
    local holder = load(keyed.id)
    if not holder or holder.standing == 'dead' then return nil end
  end
  return {keyed.print == print and 'duplicate' or 'key', keyed.id}
end

local function accept(id, print, partition, lane, priority, wait, expires, max, keep, key, retries, command)
  local c = {
    v = 1, partition = tonumber(partition), lane = lane, priority = tonumber(priority), print = print,
    max = tonumber(max), fence = 0, settled = 0, deliveries = 0, retries = tonumber(retries),
  }
  wait, expires, keep = tonumber(wait), tonumber(expires), tonumber(keep)
  if keep >= 0 then c.keep = keep end
  if key ~= '' then
    c.key = key
    later('HSET', KEYED, key, cmsgpack.pack({id = id, print = print}))
    later('ZREM', FORGET, 'k' .. key)
  end
  later('HSET', COMMANDS, id, command)
  if expires >= 0 then
    c.expires = now + expires
    later('ZADD', TIMES, c.expires, event_of('e', id, c))
  end
  if wait > 0 then
    delay(id, c, now + wait)
  else
    c.place = next_number()
    ready(id, c, now)
  end
  return {'accepted', id}
end

local receipts = {}
for i = 3, #ARGV, 12 do
  local receipt = duplicate(ARGV[i], ARGV[i + 1], ARGV[i + 9])
  receipts[#receipts + 1] = receipt or accept(unpack(ARGV, i, i + 11))
end
finish()
return receipts
