SELECT device, at, round(celsius, 6), joules, bytes_per_second FROM telemetry.readings ORDER BY device
