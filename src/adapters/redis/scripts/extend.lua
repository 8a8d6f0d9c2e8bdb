-- Leases commands anew, from now on: 1 for each where that was done, 0 where the lease has ended.
-- ARGV: lease (microseconds), then two for each: id, fence.

local lease = tonumber(ARGV[1])

local ids = {}
for i = 2, #ARGV, 2 do ids[#ids + 1] = ARGV[i] end
read_states(ids)

local extended = {}
for i = 2, #ARGV, 2 do
  local id, fence = ARGV[i], tonumber(ARGV[i + 1])
  local c = load(id)
  local has = c and c.standing == 'leased' and c.fence == fence and c.ends > now
  if has then
    c.ends = now + lease
    later('ZADD', TIMES, c.ends, event_of('l', id, c))
    save(id, c)
  end
  extended[#extended + 1] = has and 1 or 0
end
write_all()
return extended
