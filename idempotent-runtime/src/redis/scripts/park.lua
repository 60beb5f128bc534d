-- KEYS 1 record. ARGV 1 token 2 reason 3 '1' if only after the lease 4 milliseconds until the question may be asked again.
local r = read()
local refused = refusal(r, ARGV[1])
if refused then return refused end
if r.state == IN_DOUBT then return 'already' end
local orphan = ARGV[3] == '1'
if r.state ~= IN_PROGRESS or (orphan and r.ends > now) then return 'lost' end
r.state, r.lease = IN_DOUBT, u64(now + tonumber(ARGV[4]))
if not orphan or r.reason == 0 then r.reason = tonumber(ARGV[2]) end
write(r)
return 'applied'
