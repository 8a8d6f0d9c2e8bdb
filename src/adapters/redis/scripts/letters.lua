-- Dead letters, the oldest first.
-- ARGV: at most, behind the letter of this command ('': from the oldest on), behind the letter of this number ('': the command
-- says it), at most so many bytes.
-- Answers: the number of the last one that was looked at ('' at the end), and the letters.

advance(128)

local UNREADABLE = {
  lane = '?', partition = 0, priority = 32, deliveries = 0, retries = 0,
  reason = '{"kind":"undecodable","error":"its state can not be read"}',
}

local after = ARGV[3]
if after == '' then after = ARGV[2] ~= '' and call('ZSCORE', DEAD, ARGV[2]) end
local bytes = tonumber(ARGV[4])
local letters, last = {}, ''
local ids = call('ZRANGEBYSCORE', DEAD, after and '(' .. after or '-inf', '+inf', 'WITHSCORES', 'LIMIT', 0, ARGV[1])
for i = 1, #ids, 2 do
  if bytes <= 0 then break end
  local id = ids[i]
  last = ids[i + 1]
  local c = load(id) or UNREADABLE
  local command = call('HGET', COMMANDS, id) or ''
  bytes = bytes - #command
  letters[#letters + 1] =
    {id, command, c.lane, c.partition, c.priority, c.deliveries, c.retries, c.failed or 0, c.reason or ''}
end
return {last, letters}
