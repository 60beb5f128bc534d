-- KEYS 1 record. ARGV 1 token. A fence is allocated at the first query.
local r = read()
if refusal(r, ARGV[1]) or r.state ~= IN_PROGRESS then return false end
if r.fence == 0 then
  r.fence = next_fence(r)
  write(r)
end
return r.fence
