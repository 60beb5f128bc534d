-- KEYS 1 record. ARGV 1 token 2 lease.
local r = read()
local refused = refusal(r, ARGV[1])
if refused then return refused end
if r.state ~= IN_PROGRESS or r.lease == GIVEN_UP then return 'lost' end
local lease_before = r.lease
renew(r, tonumber(ARGV[2]))
if r.lease ~= lease_before then write(r) end
return 'applied'
