-- KEYS 1 record. ARGV 1 token 2 reason 3 '1' if only after the lease 4 milliseconds until the
-- outside world may be queried again.
local r = read()
local refused = refusal(r, ARGV[1])
if refused then return refused end
local orphan = ARGV[3] == '1'
if r.state == IN_DOUBT then
  -- An observer knew only that the lease had expired.
  if orphan or r.reason ~= CRASHED or tonumber(ARGV[2]) == CRASHED then return 'already' end
  r.reason = tonumber(ARGV[2])
  write(r)
  return 'applied'
end
if r.state ~= IN_PROGRESS or (orphan and r.ends > now) then return 'lost' end
r.state, r.lease = IN_DOUBT, u64(now + tonumber(ARGV[4]))
if not orphan or r.reason == 0 then r.reason = tonumber(ARGV[2]) end
write(r)
return 'applied'
