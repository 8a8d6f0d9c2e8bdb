-- Removes a dead letter for good. 1 if there was one.
-- ARGV: id.

local id = ARGV[1]
if call('ZREM', DEAD, id) == 0 then return 0 end

-- Also where it can not be read.
local c = load(id)
if c then count(c.partition, 'dead', -1) end
call('HDEL', COMMANDS, id)
call('HDEL', STATES, id)
call('HDEL', DAMAGED, id)
return 1
