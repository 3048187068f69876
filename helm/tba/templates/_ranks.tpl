{{/*
Several ranks as one learner: torchrun starts one on each GPU. On several nodes its agents meet at the leader's pod, and
it numbers them by their names: `...-learner-0` sorts before `...-learner-follower-0`, so rank 0 is where probes look.
*/}}

{{/* What `python -m` runs to train. Takes (list root values is-leader). */}}
{{- define "tba.learnerArgs" -}}
{{- $values := index . 1 }}{{ $isLeader := index . 2 }}
{{- $nodes := $values.nodes | int }}{{ $onNode := max 1 ($values.gpus | int) }}
{{- $args := list "services.learner" "run" }}
{{- if gt (mul $nodes $onNode) 1 }}
  {{- $meet := list "--standalone" }}
  {{- if gt $nodes 1 }}
    {{- $name := printf "%s-learner" (include "tba.fullname" (index . 0)) }}
    {{- $leader := printf "%s-0.%s" $name $name }}
    {{- $meet = list "--nnodes" ($nodes | toString) "--rdzv-backend" "c10d" "--rdzv-id" $name
        "--rdzv-endpoint" (printf "%s:29400" $leader)
        "--rdzv-conf" (printf "is_host=%t,join_timeout=1800,read_timeout=300" $isLeader) }}
    {{- if $isLeader }}{{ $meet = concat $meet (list "--local-addr" $leader) }}{{ end }}
  {{- end }}
  {{- /* torchrun kills what is still there after this; the leader ends by itself before. */}}
  {{- $wait := list "--shutdown-timeout" (add $values.graceSeconds 5 | toString) }}
  {{- $args = concat (list "torch.distributed.run") $meet (list "--nproc-per-node" ($onNode | toString)) $wait (list "-m") $args }}
{{- end }}
{{- $args | toJson }}
{{- end }}

{{/* Ranks connect to one another wherever the other listens, and nobody else may. Takes (list root direction). */}}
{{- define "tba.betweenRanks" }}
{{- $root := index . 0 }}
- ports: [{port: 1024, endPort: 65535}]
  {{ index . 1 }}:
    {{- range list "learner" "learner-follower" }}
    - podSelector: {matchLabels: {{ include "tba.selector" (list $root .) | fromYaml | toJson }}}
    {{- end }}
{{- end }}
