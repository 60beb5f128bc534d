-- KEYS 1 record. ARGV 1 observed token 2 '1' to force 3 milliseconds of tombstone.
local r = read()
if not r then return 'absent' end
if r.owner ~= ARGV[1] then return 'conflict' end
local left = 0
-- The tombstone of a running record keeps the record's owner from bringing it back.
if r.state == IN_PROGRESS or r.state == TOMBSTONE then left = math.max(r.ends - now, 0) end
if left > 0 and ARGV[2] ~= '1' then return 'running' end
local tombstone = math.max(left, tonumber(ARGV[3]))
if tombstone > 0 then
  r.state, r.reason, r.after = TOMBSTONE, RESOLVED, 0
  r.lease = left > 0 and u64(now + left) or GIVEN_UP
  replace(r, '', false, tombstone)
else
  redis.call('DEL', key)
end
return 'applied'
