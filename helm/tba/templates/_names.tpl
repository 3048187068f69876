{{/*
What things are called. Selector labels never change: they are immutable, and hold no version. Release and namespace may
be called 123, which without quotes is a number.
*/}}

{{- define "tba.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- ternary .Release.Name (printf "%s-%s" .Release.Name $name) (contains $name .Release.Name) | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end }}

{{- define "tba.release" -}}
app.kubernetes.io/name: {{ default .Chart.Name .Values.nameOverride | quote }}
app.kubernetes.io/instance: {{ .Release.Name | quote }}
{{- end }}

{{/* Of one component. Takes (list root component). */}}
{{- define "tba.selector" -}}
{{- include "tba.release" (index . 0) }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end }}

{{- define "tba.labels" -}}
{{- $root := index . 0 -}}
{{ include "tba.selector" . }}
app.kubernetes.io/part-of: tba
app.kubernetes.io/managed-by: {{ $root.Release.Service }}
app.kubernetes.io/version: {{ $root.Chart.AppVersion | quote }}
helm.sh/chart: {{ printf "%s-%s" $root.Chart.Name $root.Chart.Version | replace "+" "_" }}
{{- end }}

{{/* Name and labels of an object of a component: its metadata. Takes (list root component) or (list root component name). */}}
{{- define "tba.metadata" -}}
{{- $root := index . 0 -}}
name: {{ include "tba.fullname" $root }}-{{ index . (ternary 2 1 (eq (len .) 3)) }}
namespace: {{ $root.Release.Namespace | quote }}
labels:
  {{- include "tba.labels" (list $root (index . 1)) | nindent 2 }}
{{- end }}

{{/* The component of a scorer: reward-verifier, reward-judge-strict. */}}
{{- define "tba.scorer" -}}
reward-{{ . | replace "." "-" | replace "_" "-" }}
{{- end }}

{{/* The first of two images that says something, field by field. Takes (list root image image...). */}}
{{- define "tba.image" -}}
{{- $root := index . 0 -}}
{{- $image := dict -}}
{{- range rest . }}{{ range $key, $value := . }}{{ if and $value (not (hasKey $image $key)) }}{{ $_ := set $image $key $value }}{{ end }}{{ end }}{{ end -}}
{{- $registry := default $image.registry $root.Values.imageRegistry -}}
{{- with $registry }}{{ . }}/{{ end -}}
{{- $image.repository -}}
{{- if $image.digest }}@{{ $image.digest }}{{ else }}:{{ default $root.Chart.AppVersion $image.tag }}{{ end -}}
{{- end }}

{{- define "tba.apiKeySecret" -}}
{{- default (printf "%s-api-key" (include "tba.fullname" .)) .Values.api.existingSecret -}}
{{- end }}

{{- define "tba.postgresSecret" -}}
{{- if eq .Values.postgres.mode "external" }}{{ .Values.postgres.external.existingSecret }}{{ else }}{{ include "tba.fullname" . }}-postgres{{ end -}}
{{- end }}

{{- define "tba.weightsClaim" -}}
{{- default (printf "%s-weights" (include "tba.fullname" .)) .Values.weights.volume.existingClaim -}}
{{- end }}

{{- define "tba.checkpointsClaim" -}}
{{- default (printf "%s-checkpoints" (include "tba.fullname" .)) .Values.checkpoints.existingClaim -}}
{{- end }}

{{- define "tba.scorerNames" -}}
{{- $names := list }}{{ range .Values.scorers }}{{ $names = append $names .name }}{{ end }}{{ join "," $names -}}
{{- end }}

{{/* Whether learner and generators read from a hub or an object store. */}}
{{- define "tba.usesInternet" -}}
{{- if or .Values.weights.url (and .Values.policy.model (not .Values.modelCache.offline)) }}true{{ end -}}
{{- end }}

{{/* The port of a URL. */}}
{{- define "tba.urlPort" -}}
{{- $host := regexReplaceAll "^[a-z0-9]+://([^/?#]*).*$" . "${1}" -}}
{{- if regexMatch ":[0-9]+$" $host }}{{ regexFind "[0-9]+$" $host }}{{ else }}{{ ternary "80" "443" (hasPrefix "http://" .) }}{{ end -}}
{{- end }}

{{/* A StatefulSet wants a Service of its own; nobody asks this one for an address. Takes (list root component). */}}
{{- define "tba.governingService" -}}
---
apiVersion: v1
kind: Service
metadata: {{- include "tba.metadata" . | nindent 2 }}
spec:
  clusterIP: None
  selector: {{- include "tba.selector" . | nindent 4 }}
  ports:
    - {name: health, port: 8081, targetPort: health}
{{- end }}

{{/* Whether a scorer reads its model from a hub, or asks a judge somewhere. Takes (list root scorer). */}}
{{- define "tba.scorerUsesInternet" -}}
{{- $model := dig "settings" "TBA_MODEL" "" (index . 1) | toString -}}
{{- $isHub := and $model (not (hasPrefix "/" $model)) (not (index . 0).Values.modelCache.offline) -}}
{{- if or $isHub (regexMatch "^judge([.]|$)" (index . 1).name) }}true{{ end -}}
{{- end }}
