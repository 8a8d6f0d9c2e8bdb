-- Dead letters, the oldest first.
-- ARGV: at most, behind the letter of this command ('': from the oldest on), at most so many bytes.
-- Answers: the last one that was looked at ('' at the end), and the letters.

advance(128)

local UNREADABLE = {
  lane = '?', partition = 0, priority = 32, deliveries = 0, retries = 0,
  reason = '{"kind":"undecodable","error":"its state can not be read"}',
}

local after = ARGV[2] ~= '' and call('ZSCORE', DEAD, ARGV[2])
local bytes = tonumber(ARGV[3])
local letters, last = {}, ''
local ids = call('ZRANGEBYSCORE', DEAD, after and '(' .. after or '-inf', '+inf', 'LIMIT', 0, ARGV[1])
for _, id in ipairs(ids) do
  if bytes <= 0 then break end
  last = id
  local c = load(id) or UNREADABLE
  local command = call('HGET', COMMANDS, id) or ''
  bytes = bytes - #command
  letters[#letters + 1] =
    {id, command, c.lane, c.partition, c.priority, c.deliveries, c.retries, c.failed or 0, c.reason or ''}
end
return {last, letters}
