#!/bin/bash
# The health check of the images: exit code 0 while /health/ready answers 200. It starts no Python, and follows STEERING_PORT;
# health routes are answered under any name in Host.
set -o errexit
exec 3<>"/dev/tcp/127.0.0.1/${STEERING_PORT:-8000}"
printf 'GET /health/ready HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n' >&3
read -r -t 4 _ status _ <&3
[[ "$status" == 200 ]]
