-- Makes the queue where there is none, also where the server has lost it. Says what it was made with.
-- ARGV: version, partitions.

if call('HEXISTS', META, 'version') == 0 then
  call('HSET', META, 'version', ARGV[1], 'partitions', ARGV[2])
end
return {call('HGET', META, 'version'), call('HGET', META, 'partitions') or ''}
