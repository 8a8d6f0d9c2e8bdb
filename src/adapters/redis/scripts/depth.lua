-- How much a partition holds: ready, delayed, leased, dead, and for how long the oldest ready one has waited, in microseconds (-1:
-- there is none).
-- ARGV: partition.

advance(128)

local partition = ARGV[1]
local function counted(what)
  return tonumber(call('HGET', COUNTS, partition .. '\n' .. what) or '0')
end

local first, last = '[' .. partition .. '\n', '(' .. partition .. '\11'
local waited = -1
for _, member in ipairs(call('ZRANGEBYLEX', SINCE, first, last, 'LIMIT', 0, 16)) do
  local since, id = string.match(member, '^%d+\n(' .. string.rep('%d', 16) .. ')(.*)$')
  local c = id and load(id)
  if c and c.standing == 'ready' and c.since == tonumber(since) then
    waited = math.max(now - c.since, 0)
    break
  end
  -- Of one that was put aside.
  call('ZREM', SINCE, member)
end
return {call('ZLEXCOUNT', READY, first, last), counted('delayed'), counted('leased'), counted('dead'), waited}
