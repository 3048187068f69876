{{/* What a process is told. Names are fields of its Settings class; a test compares them. */}}

{{/* Every process: whom it belongs to, how it is watched. Takes (list root component-values). */}}
{{- define "tba.env.every" -}}
{{- $root := index . 0 }}{{ $component := index . 1 -}}
- {name: TBA_RUN_ID, value: {{ $root.Values.runId | quote }}}
- {name: TBA_SCORERS, value: {{ include "tba.scorerNames" $root | quote }}}
- {name: TBA_HEALTH_ADDRESS, value: "[::]:8081"} # of IPv4 too
- {name: TBA_GRACE_SECONDS, value: {{ $component.graceSeconds | quote }}}
- {name: TBA_LOG_FORMAT, value: json}
{{- end }}

{{- define "tba.env.kafka" -}}
{{- $external := .Values.kafka.external -}}
{{- if ne .Values.kafka.mode "external" -}}
- {name: TBA_KAFKA_SERVERS, value: "{{ include "tba.fullname" . }}-kafka:9092"}
{{- else -}}
- {name: TBA_KAFKA_SERVERS, value: {{ $external.servers | quote }}}
- {name: TBA_KAFKA_SECURITY_PROTOCOL, value: {{ $external.securityProtocol }}}
{{- if hasPrefix "SASL" $external.securityProtocol }}
- {name: TBA_KAFKA_SASL_MECHANISM, value: {{ $external.saslMechanism }}}
- name: TBA_KAFKA_USERNAME
  {{- if $external.username }}
  value: {{ $external.username | quote }}
  {{- else }}
  valueFrom: {secretKeyRef: {name: {{ $external.existingSecret }}, key: {{ $external.usernameKey }}}}
  {{- end }}
- name: TBA_KAFKA_PASSWORD
  valueFrom: {secretKeyRef: {name: {{ $external.existingSecret }}, key: {{ $external.passwordKey }}}}
{{- end }}
{{- if $external.caSecret }}
- {name: TBA_KAFKA_CA_FILE, value: /etc/tba/kafka-ca/{{ $external.caKey }}}
{{- end }}
{{- end }}
{{- end }}

{{/*
Postgres, as the component's own user where the values name one. The password is libpq's own variable, so that it is
never part of a URL. Takes (list root component).
*/}}
{{- define "tba.env.postgres" -}}
{{- $root := index . 0 }}{{ $external := $root.Values.postgres.external -}}
{{- $user := $external }}{{ with get $external (index . 1) }}{{ if .user }}{{ $user = . }}{{ end }}{{ end -}}
{{- $isExternal := eq $root.Values.postgres.mode "external" -}}
{{- if not $isExternal -}}
- {name: TBA_DATABASE_URL, value: "postgresql+psycopg://postgres@{{ include "tba.fullname" $root }}-postgres:5432/postgres"}
{{- else }}
{{- $ca := ternary (printf "&sslrootcert=/etc/tba/postgres-ca/%s" $external.caKey) "" (ne $external.caSecret "") -}}
- name: TBA_DATABASE_URL
  value: "postgresql+psycopg://{{ $user.user }}@{{ $external.host }}:{{ $external.port }}/{{ $external.database }}?sslmode={{ $external.sslMode }}{{ $ca }}"
{{- end }}
- name: PGPASSWORD
  valueFrom:
    secretKeyRef:
      name: {{ ternary $user.existingSecret (include "tba.postgresSecret" $root) $isExternal }}
      key: {{ ternary $user.passwordKey "password" $isExternal }}
{{- end }}

{{/* How siblings share a topic. The bundled broker's group coordinator does not survive kills: each has its share. */}}
{{- define "tba.env.share" -}}
{{- $root := index . 0 -}}
{{- if eq $root.Values.kafka.mode "bundled" -}}
- {name: TBA_SHARING, value: static}
- {name: TBA_PROCESS_COUNT, value: {{ index . 1 | quote }}}
- name: TBA_PROCESS_INDEX
  valueFrom: {fieldRef: {fieldPath: "metadata.labels['apps.kubernetes.io/pod-index']"}}
{{- else -}}
- {name: TBA_SHARING, value: group}
{{- end }}
{{- end }}

{{- define "tba.env.weights" -}}
{{- $store := .Values.weights.objectStore -}}
- {name: TBA_WEIGHTS_URL, value: {{ default (printf "/var/lib/tba/weights/%s" .Values.runId) .Values.weights.url | quote }}}
{{- if and .Values.weights.url $store.endpointUrl }}
- {name: AWS_ENDPOINT_URL, value: {{ $store.endpointUrl | quote }}}
{{- end }}
{{- end }}

{{- define "tba.env.hub" -}}
{{- with .Values.policy.huggingFaceTokenSecret }}
- name: HF_TOKEN
  valueFrom: {secretKeyRef: {name: {{ . }}, key: {{ $.Values.policy.huggingFaceTokenKey }}}}
{{- end }}
{{- if .Values.modelCache.offline }}
- {name: HF_HUB_OFFLINE, value: "1"}
{{- end }}
{{- end }}

{{- define "tba.env.apiKey" -}}
- name: TBA_API_KEY
  valueFrom: {secretKeyRef: {name: {{ include "tba.apiKeySecret" . }}, key: {{ .Values.api.secretKey }}}}
{{- end }}

{{/* An environment as YAML; a server refuses one that has a name twice. Takes (list component variables). */}}
{{- define "tba.env.once" -}}
{{- $seen := dict }}
{{- range index . 1 }}
{{- if hasKey $seen .name }}{{ fail (printf "%s: the environment has %s twice: the chart says it already, or settings and env both do" (index $ 0) .name) }}{{ end }}
{{- $_ := set $seen .name true }}
{{- end }}
{{- toYaml (index . 1) }}
{{- end }}

{{/* Settings as values say them: a map from name to value. Helm has numbers as fractions, and writes 1e+06. */}}
{{- define "tba.env.settings" -}}
{{- range $name, $value := . }}
{{- $isWhole := and (kindIs "float64" $value) (eq (floor $value) $value) }}
- {name: {{ $name }}, value: {{ ternary (printf "%.0f" $value) ($value | toString) $isWhole | quote }}}
{{- end }}
{{- end }}
