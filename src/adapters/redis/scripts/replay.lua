-- Makes a dead letter's command ready again, behind all that is there. 1 if there was one. Or 'more' if there is more to do before.
-- ARGV: id.

if not advance(128) then return 'more' end

local id = ARGV[1]
local c = load(id)
if not c or c.standing ~= 'dead' then return 0 end

call('ZREM', DEAD, id)
count(c.partition, 'dead', -1)
c.reason, c.failed, c.number, c.expires = nil, nil, nil, nil
c.deliveries, c.retries, c.place = 0, 0, next_number()
if c.key then
  local keyed = unpacked(call('HGET', KEYED, c.key))
  -- Other work may have it since.
  if not keyed or (keyed.ends and keyed.ends <= now) then
    call('HSET', KEYED, c.key, cmsgpack.pack({id = id, print = c.print}))
    call('ZREM', FORGET, 'k' .. c.key)
  end
end
ready(id, c, now)
finish()
return 1
