-- KEYS 1 record 2 staged record. ARGV 1 token 2 state 3 reason 4 schema 5 ttl 6 '1' if staged 7
-- body 8 the record to write again if it is gone: fields and words, or empty 9 until when, in
-- milliseconds.
local token, staged, body = ARGV[1], ARGV[6] == '1', ARGV[7]
local r, answer = read(), 'applied'
if not r and ARGV[8] ~= '' and now < tonumber(ARGV[9]) then
  r, answer = parse(ARGV[8]), 'adopted'
  r.head, r.text = ARGV[8], string.sub(ARGV[8], HEADER + 1)
else
  local refused = refusal(r, token)
  if not refused and is_answer(r) then refused = 'already' end
  if not refused and not is_unfinished(r) then refused = 'lost' end
  if refused then
    if staged then redis.call('UNLINK', KEYS[2]) end
    return refused
  end
end
if staged and redis.call('EXISTS', KEYS[2]) == 0 then return 'unstaged' end
r.state, r.reason, r.schema = tonumber(ARGV[2]), tonumber(ARGV[3]), ARGV[4]
replace(r, body, staged, tonumber(ARGV[5]) + r.after)
return answer
