{{/*
The pod of a process of ours. Takes a dict:
  root, component    whose pod it is; its values are .Values.pod under `values`
  values             the component's own values
  args               what `python -m` runs
  env                YAML of more environment
  kafka              whether it is told where Kafka is
  wait               what an init container waits for first: a list of "schema" and "topics"
  init               YAML of more init containers
  volumes, mounts    YAML of more of these
  ports, probes      YAML for the container
  labels             YAML of more labels
  affinity, spread   where pods go; hosts: a name of this pod's own
  settings           defaults for this component, which values may change
  models             whether it holds models: a large cache
  account            the ServiceAccount, where it is not the component's
  token              whether it speaks with the cluster's API
  restart            of a Job's pod
*/}}
{{- define "tba.pod" -}}
{{- $root := .root }}
{{- $values := mustMergeOverwrite (deepCopy $root.Values.pod) (deepCopy .values) }}
{{- $component := .component }}{{ $kafka := $root.Values.kafka }}{{ $postgres := $root.Values.postgres -}}
metadata:
  labels:
    {{- include "tba.labels" (list $root .component) | nindent 4 }}
    {{- with $values.labels }}{{ toYaml . | nindent 4 }}{{ end }}
    {{- with .labels }}{{ . | nindent 4 }}{{ end }}
  {{- with $values.annotations }}
  annotations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
spec:
  serviceAccountName: {{ include "tba.fullname" $root }}-{{ default .component .account }}
  automountServiceAccountToken: {{ default false .token }}
  # Links to a Service called tba-... would come as TBA_..., among the settings.
  enableServiceLinks: false
  terminationGracePeriodSeconds: {{ add $values.graceSeconds 10 }}
  {{- with .restart }}
  restartPolicy: {{ . }}
  {{- end }}
  {{- with $root.Values.imagePullSecrets }}
  imagePullSecrets: {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .hosts }}
  # Known to itself by the name that others use, before the cluster's DNS has heard of it.
  hostAliases:
    - {ip: 127.0.0.1, hostnames: [{{ . }}]}
  {{- end }}
  securityContext: {{- include "tba.podSecurity" 10001 | nindent 4 }}
  {{- include "tba.place" (list $root .component $values (default dict .affinity)) | nindent 2 }}
  {{- if .spread }}
  topologySpreadConstraints: {{- include "tba.spread" (list $root .component) | nindent 4 }}
  {{- end }}
  {{- if or .wait .init }}
  initContainers:
    {{- range .wait }}
    - name: wait-for-{{ . }}
      {{- include "tba.container" (dict "root" $root "values" $values) | nindent 6 }}
      args: {{ ternary (list "services.buffer" "await-schema") (list "tba_common.topics" "--wait") (eq . "schema") | toJson }}
      resources: {{- toYaml $root.Values.jobs.resources | nindent 8 }}
      env:
        {{- include "tba.env.every" (list $root $values) | nindent 8 }}
        {{- ternary (include "tba.env.postgres" (list $root $component)) (include "tba.env.kafka" $root) (eq . "schema") | nindent 8 }}
      volumeMounts: {{- include "tba.mounts" $root | nindent 8 }}
    {{- end }}
    {{- with .init }}{{ . | nindent 4 }}{{ end }}
  {{- end }}
  containers:
    - name: {{ .component }}
      {{- include "tba.container" (dict "root" $root "values" $values) | nindent 6 }}
      args: {{ .args | toJson }}
      {{- $settings := include "tba.env.settings" (merge (dict) $values.settings (default dict .settings)) }}
      {{- $told := list (include "tba.env.every" (list $root $values)) (ternary (include "tba.env.kafka" $root) "" (default false .kafka)) (default "" .env) $settings }}
      env: {{- include "tba.env.once" (list .component (concat (join "\n" $told | fromYamlArray) $values.env)) | nindent 8 }}
      {{- with concat $values.envFrom (default list .envFrom) }}
      envFrom: {{- toYaml . | nindent 8 }}
      {{- end }}
      {{- with .ports }}
      ports: {{- . | nindent 8 }}
      {{- end }}
      {{- with .probes }}{{ . | nindent 6 }}{{ end }}
      resources: {{- include "tba.resources" $values | nindent 8 }}
      volumeMounts:
        {{- include "tba.mounts" $root | nindent 8 }}
        {{- with .mounts }}{{ . | nindent 8 }}{{ end }}
        {{- if $values.gpus }}
        - {name: shared-memory, mountPath: /dev/shm}
        {{- end }}
        {{- with $values.volumeMounts }}{{ toYaml . | nindent 8 }}{{ end }}
  volumes:
    - {name: tmp, emptyDir: {}}
    {{- $cache := $root.Values.modelCache }}
    {{- if and .models $cache.existingClaim }}
    - {name: cache, persistentVolumeClaim: {claimName: {{ $cache.existingClaim }}}}
    {{- else }}
    - {name: cache, emptyDir: {sizeLimit: {{ ternary $cache.sizeLimit "1Gi" (default false .models) }}}}
    {{- end }}
    {{- if and (eq $kafka.mode "external") $kafka.external.caSecret }}
    - {name: kafka-ca, secret: {secretName: {{ $kafka.external.caSecret }}}}
    {{- end }}
    {{- if and (eq $postgres.mode "external") $postgres.external.caSecret }}
    - {name: postgres-ca, secret: {secretName: {{ $postgres.external.caSecret }}}}
    {{- end }}
    {{- with .volumes }}{{ . | nindent 4 }}{{ end }}
    {{- if $values.gpus }}
    - {name: shared-memory, emptyDir: {medium: Memory, sizeLimit: {{ $values.sharedMemory }}}}
    {{- end }}
    {{- with $values.volumes }}{{ toYaml . | nindent 4 }}{{ end }}
{{- end }}

{{- define "tba.container" -}}
image: {{ include "tba.image" (list .root .values.image .root.Values.image) }}
imagePullPolicy: {{ .root.Values.image.pullPolicy }}
securityContext: {{- include "tba.containerSecurity" . | nindent 2 }}
{{- end }}

{{/* What the Pod Security Standard "restricted" asks for, and a root file system that cannot be written. */}}
{{- define "tba.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}

{{/* Takes the user's number, which owns the pod's volumes as a group. */}}
{{- define "tba.podSecurity" -}}
runAsNonRoot: true
runAsUser: {{ . }}
runAsGroup: {{ . }}
fsGroup: {{ . }}
fsGroupChangePolicy: OnRootMismatch
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "tba.mounts" -}}
- {name: tmp, mountPath: /tmp}
- {name: cache, mountPath: /var/cache/tba}
{{- if and (eq .Values.kafka.mode "external") .Values.kafka.external.caSecret }}
- {name: kafka-ca, mountPath: /etc/tba/kafka-ca, readOnly: true}
{{- end }}
{{- if and (eq .Values.postgres.mode "external") .Values.postgres.external.caSecret }}
- {name: postgres-ca, mountPath: /etc/tba/postgres-ca, readOnly: true}
{{- end }}
{{- end }}

{{- define "tba.resources" -}}
{{- $resources := deepCopy (default dict .resources) }}
{{- if .gpus }}
{{- $_ := set $resources "limits" (merge (dict .gpuResource (.gpus | toString)) (default dict $resources.limits)) }}
{{- $_ := set $resources "requests" (merge (dict .gpuResource (.gpus | toString)) (default dict $resources.requests)) }}
{{- end }}
{{- toYaml $resources }}
{{- end }}

{{/* Where a pod may run, and before whom. Takes (list root component values affinity). */}}
{{- define "tba.place" -}}
{{- $root := index . 0 }}{{ $values := index . 2 }}
{{- with $values.runtimeClassName }}
runtimeClassName: {{ . }}
{{- end }}
{{- with include "tba.priority" (list $root (index . 1) $values) }}
priorityClassName: {{ . }}
{{- end }}
{{- with $values.nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- $tolerations := $values.tolerations }}
{{- if $values.gpus }}{{ $tolerations = append $tolerations (dict "key" $values.gpuResource "operator" "Exists" "effect" "NoSchedule") }}{{ end }}
{{- with $tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with default (index . 3) $values.affinity }}
affinity: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* Metadata of the pod of a server's official image: what values say of every pod is said of it too. Takes (list root component). */}}
{{- define "tba.serverMetadata" -}}
{{- $root := index . 0 -}}
labels:
  {{- include "tba.labels" . | nindent 2 }}
  {{- with $root.Values.pod.labels }}{{ toYaml . | nindent 2 }}{{ end }}
{{- with $root.Values.pod.annotations }}
annotations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{- define "tba.spread" -}}
{{- $labels := include "tba.selector" . }}
{{- range $key := list "kubernetes.io/hostname" "topology.kubernetes.io/zone" }}
- maxSkew: 1
  topologyKey: {{ $key }}
  whenUnsatisfiable: ScheduleAnyway
  labelSelector:
    matchLabels: {{- $labels | nindent 6 }}
{{- end }}
{{- end }}

{{- define "tba.priority" -}}
{{- $root := index . 0 -}}
{{- $class := index . 1 | trimSuffix "-follower" }}{{ $known := list "learner" "buffer" "api" "generator" -}}
{{- if (index . 2).priorityClassName -}}
{{- (index . 2).priorityClassName -}}
{{- else if and $root.Values.priorityClasses.create (has $class $known) -}}
{{- $root.Release.Namespace }}-{{ include "tba.fullname" $root }}-{{ $class -}}
{{- end -}}
{{- end }}

{{/* A volume of one node wants all its pods there. */}}
{{- define "tba.togetherAffinity" -}}
{{- if and (not .Values.weights.url) (eq .Values.weights.volume.accessMode "ReadWriteOnce") -}}
podAffinity:
  requiredDuringSchedulingIgnoredDuringExecution:
    - topologyKey: kubernetes.io/hostname
      labelSelector:
        matchLabels:
          {{- include "tba.release" . | nindent 10 }}
          tba/weights: shared
{{- end }}
{{- end }}

{{/* The learner, which takes most, chooses the node: one chosen by a generator may have no room for it. */}}
{{- define "tba.besideLearner" -}}
{{- with include "tba.togetherAffinity" . -}}
{{ . }}
    - topologyKey: kubernetes.io/hostname
      labelSelector:
        matchLabels:
          {{- include "tba.selector" (list $ "learner") | nindent 10 }}
{{- end }}
{{- end }}

{{/* Alive is a loop that turns; ready is what the process says of itself. Takes a dict: startupSeconds, startup. */}}
{{- define "tba.probes" -}}
startupProbe:
  httpGet: {path: {{ default "/healthz" .startup }}, port: health}
  periodSeconds: 5
  timeoutSeconds: 5
  failureThreshold: {{ div (default 300 .startupSeconds) 5 }}
livenessProbe:
  httpGet: {path: /healthz, port: health}
  periodSeconds: 20
  timeoutSeconds: 5
  failureThreshold: {{ default 3 .livenessFailures }}
readinessProbe:
  httpGet: {path: /readyz, port: health}
  periodSeconds: 5
  timeoutSeconds: 5
{{- end }}
