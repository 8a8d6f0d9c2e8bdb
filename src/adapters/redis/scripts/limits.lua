-- Limits what of a lane is taken, from now on.
-- ARGV: version, partitions, lane, at most so many leased (-1: no limit), then of a rate: '' (none), or 'bucket', interval, burst, or 'window',
-- window, commands. Times in microseconds.
-- Answers 'open' if the queue is not there any more: then nothing was done.

if not is_as_opened(ARGV[1], ARGV[2]) then return 'open' end

local lane, leased, kind = ARGV[3], tonumber(ARGV[4]), ARGV[5]
local limit = {}
if leased >= 0 then limit.leased = leased end
if kind == 'bucket' then
  limit.kind, limit.interval, limit.burst = kind, tonumber(ARGV[6]), tonumber(ARGV[7])
elseif kind == 'window' then
  limit.kind, limit.window, limit.commands = kind, tonumber(ARGV[6]), tonumber(ARGV[7])
end

-- Every worker says the same when it starts: what was taken of the same rate counts on.
local before = unpacked(call('HGET', LIMITS, lane))
if before and before.kind == limit.kind and before.interval == limit.interval and before.burst == limit.burst then
  limit.full = before.full
end

if next(limit) then
  call('HSET', LIMITS, lane, cmsgpack.pack(limit))
else
  call('HDEL', LIMITS, lane)
end
stirred = true
finish()
return 1
