#!/usr/bin/env bash
# Generates the Python code beside the .proto files, or with --check fails when the committed code is stale.
set -euo pipefail
cd "$(dirname "$0")"
tools=../.venv-protos
stamp=$tools/requirements.txt

if ! cmp -s requirements.txt "$stamp"; then
  echo "protos: installing the code generators into .venv-protos" >&2
  rm -rf "$tools"
  "${PYTHON:-python3}" -m venv "$tools"
  "$tools/bin/pip" install --quiet --disable-pip-version-check -r requirements.txt
  cp requirements.txt "$stamp"
fi

generate_into() {
  local googleapis
  googleapis=$("$tools/bin/python" -c 'import google.rpc.status_pb2 as m, pathlib; print(pathlib.Path(m.__file__).parents[2])')
  PATH="$PWD/$tools/bin:$PATH" "$tools/bin/python" -m grpc_tools.protoc -I. -I"$googleapis" \
    --python_out="$1" --mypy_out=quiet:"$1" shortlist/v1/*.proto
  # Only files with services get a gRPC module.
  PATH="$PWD/$tools/bin:$PATH" "$tools/bin/python" -m grpc_tools.protoc -I. -I"$googleapis" \
    --grpc_python_out="$1" --mypy_grpc_out=quiet:"$1" shortlist/v1/recommender.proto shortlist/v1/model.proto
}

if [ "${1:-}" = "--check" ]; then
  fresh=$(mktemp -d)
  trap 'rm -rf "$fresh"' EXIT
  generate_into "$fresh"
  status=0
  for file in "$fresh"/shortlist/v1/*; do
    cmp -s "$file" "shortlist/v1/$(basename "$file")" || { echo "stale: protos/shortlist/v1/$(basename "$file")" >&2; status=1; }
  done
  [ $status = 0 ] || echo "protos: run 'make protos' and commit the result" >&2
  exit $status
fi
generate_into .
