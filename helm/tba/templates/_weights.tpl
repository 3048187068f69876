{{/* The volume that learner and generators share, unless weights go through an object store. */}}

{{- define "tba.weightsVolume" -}}
{{- if not .Values.weights.url -}}
- {name: weights, persistentVolumeClaim: {claimName: {{ include "tba.weightsClaim" . }}}}
{{- end }}
{{- end }}

{{/* Takes (list root read-only). */}}
{{- define "tba.weightsMount" -}}
{{- if not (index . 0).Values.weights.url -}}
- {name: weights, mountPath: /var/lib/tba/weights, readOnly: {{ index . 1 }}}
{{- end }}
{{- end }}

{{- define "tba.weightsLabel" -}}
tba/weights: shared
{{- end }}

{{- define "tba.storeSecret" -}}
{{- if and .Values.weights.url .Values.weights.objectStore.existingSecret -}}
- secretRef: {name: {{ .Values.weights.objectStore.existingSecret }}}
{{- else -}}
[]
{{- end }}
{{- end }}
