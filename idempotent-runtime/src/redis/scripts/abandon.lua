-- KEYS 1 record. ARGV 1 token 2 reason.
local r = read()
local refused = refusal(r, ARGV[1])
if refused then return refused end
if r.state ~= IN_PROGRESS or r.policy >= HOLD then return 'lost' end
r.lease, r.reason = GIVEN_UP, tonumber(ARGV[2])
write(r)
return 'applied'
