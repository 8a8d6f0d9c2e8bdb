-- Removes a dead letter for good. 1 if there was one.
-- ARGV: id.

local id = ARGV[1]
if call('ZREM', DEAD, id) == 0 then return 0 end

-- Also where it can not be read: then the command itself says where it was counted.
local function partition_of_command()
  local read, record = pcall(cjson.decode, call('HGET', COMMANDS, id) or '')
  local partition = read and type(record) == 'table' and type(record.envelope) == 'table' and record.envelope.partition_id
  return type(partition) == 'number' and string.format('%d', partition)
end
local c = load(id)
local partition = c and c.partition or partition_of_command()
if partition and tonumber(call('HGET', COUNTS, partition .. '\ndead') or '0') > 0 then count(partition, 'dead', -1) end
call('HDEL', COMMANDS, id)
call('HDEL', STATES, id)
call('HDEL', DAMAGED, id)
write_all()
return 1
