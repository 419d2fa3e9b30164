-- Tells on standard error what the benchmark reads: requests, microseconds, failures, bytes.
done = function(summary)
    local errors = summary.errors
    local failures = errors.connect + errors.read + errors.write + errors.status + errors.timeout
    io.stderr:write(string.format("%d %d %d %d\n", summary.requests, summary.duration, failures, summary.bytes))
end
