#!/bin/sh
# Tests the Compose file with the simulator instead of Twelve Data: builds, scales, kills and stops the containers and
# counts the prices. See README.md.
set -eu
cd "$(dirname "$0")/../.."
export TWELVE_DATA_API_KEY=any POSTGRES_PASSWORD='p@ss w/$rd' GRAFANA_PASSWORD="an'other"

compose() {
    docker compose --progress quiet --project-name tickpipe-test --env-file /dev/null --profile observability \
        --file docker-compose.yml --file tests/containers/simulator.yml "$@"
}
say() { printf '\n== %s\n' "$*"; }
fail() { printf 'FAILED: %s\n' "$*" >&2 && compose ps --all >&2 && compose logs --tail 20 >&2 && exit 1; }
query() { compose exec -T timescaledb psql --username tickpipe --no-align --tuples-only --command "$1"; }
within() { # SECONDS COMMAND …: repeat until it succeeds
    seconds=$1 && shift
    for _ in $(seq "$seconds"); do "$@" && return || sleep 1; done
    fail "timeout after $seconds s: $*"
}
up() { compose up --detach --wait --scale consumer=3 "$@" producer consumer simulator; }
moving() { [ "$(query "SELECT count(*) FROM prices_real_time WHERE received_at > now() - interval '2 s'")" -gt 0 ]; }
scraped() { compose exec -T prometheus wget -qO- 'http://127.0.0.1:9090/api/v1/query?query=sum(up)' | grep -q '"4"'; }
killed() { # CONTAINER: kill -9 from another container, so that the engine detects a crash
    docker run --rm --pid host --user root tickpipe sh -c "kill -9 $(docker inspect --format '{{.State.Pid}}' "$1")"
}

trap 'compose down --volumes >/dev/null' EXIT
compose down --volumes

say "up --build, three consumers"
up --build
compose ps
[ "$(docker run --rm tickpipe id -u)" != 0 ] || fail "the image runs as root"
within 20 moving

say "open ports"
ports=$(docker ps --filter name=tickpipe-test --format '{{.Ports}}' | tr ',' '\n' | grep -e '->')
echo "$ports"
echo "$ports" | grep -v '127.0.0.1:' && fail "a port is open to other machines"

say "status, doctor, verify"
for command in status doctor verify; do compose exec -T consumer tickpipe "$command"; done

say "Prometheus and the role of Grafana"
compose up --detach prometheus grafana-role
within 60 scraped
[ "$(compose exec -T --env PGPASSWORD="$GRAFANA_PASSWORD" timescaledb psql --host timescaledb --username tickpipe_reader \
    --dbname tickpipe --no-align --tuples-only --command 'SELECT count(*) > 0 FROM prices_real_time')" = t ] || fail "the role of Grafana cannot read"

say "kill -9: each container restarts"
for service in consumer redis timescaledb producer; do
    killed "tickpipe-test-$service-1"
    within 60 sh -c "docker inspect --format '{{.RestartCount}} {{.State.Health.Status}}' tickpipe-test-$service-1 | grep '1 healthy'"
done
within 60 moving

say "stop: within the grace period, with status 0"
start=$(date +%s)
compose stop
echo "$(($(date +%s) - start)) s"
statuses=$(compose ps --all --format '{{.ExitCode}} {{.Name}}')
echo "$statuses"
echo "$statuses" | grep -v '^0 ' && fail "a container exited with another status"

say "start again, stop the producer, count the prices"
up
within 20 moving
compose stop producer
within 60 sh -c 'docker exec tickpipe-test-consumer-1 tickpipe status | grep "^backlog 0 "'
compose exec -T consumer tickpipe verify --all
say "passed"
