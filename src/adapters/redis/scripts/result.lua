-- How a command has ended; nothing where that is not kept.
-- ARGV: id.

local kept = unpacked(call('HGET', RESULTS, ARGV[1]))
return kept and kept.ends > now and kept.result
