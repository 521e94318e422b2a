{{- define "tickpipe.name" -}}
{{ printf "%s-tickpipe" .Release.Name | replace "tickpipe-tickpipe" "tickpipe" | trunc 50 | trimSuffix "-" }}
{{- end }}

{{- define "tickpipe.labels" -}}
{{ include "tickpipe.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version }}
{{- end }}

{{- define "tickpipe.selector" -}}
app.kubernetes.io/name: tickpipe
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end }}

{{- define "tickpipe.image" -}}
image: {{ printf "%s:%s" .Values.image.repository (.Values.image.tag | default .Chart.AppVersion) | quote }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
{{- end }}

{{- /* What Kubernetes calls restricted, and a read-only root. */ -}}
{{- define "tickpipe.podSecurity" -}}
automountServiceAccountToken: false
enableServiceLinks: false
securityContext:
  runAsNonRoot: true
  runAsUser: 10001
  runAsGroup: 10001
  fsGroup: 10001
  fsGroupChangePolicy: OnRootMismatch
  seccompProfile:
    type: RuntimeDefault
{{- with .Values.image.pullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{- define "tickpipe.containerSecurity" -}}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities:
    drop: [ALL]
{{- end }}

{{- /* A secret as a variable. Takes the root, the variable and the key. */ -}}
{{- define "tickpipe.secretEnv" -}}
- name: {{ .variable }}
  valueFrom:
    secretKeyRef:
      name: {{ .root.Values.secret.name }}
      key: {{ .key }}
{{- end }}

{{- define "tickpipe.env" -}}
- name: PRICE_STREAM
  value: {{ .Values.priceStream | quote }}
- name: CONSUMER_GROUP
  value: {{ .Values.consumerGroup | quote }}
- name: LOG_LEVEL
  value: {{ .Values.logLevel }}
- name: METRICS_PORT
  value: "9464"
- name: METRICS_HOST
  value: "0.0.0.0"
{{- end }}

{{- /* A long outage is not a reason to restart: prices wait in the spool, entries in the streams. A loop that hangs is. */ -}}
{{- define "tickpipe.probes" -}}
ports:
  - name: metrics
    containerPort: 9464
startupProbe:
  tcpSocket: { port: metrics }
  periodSeconds: 2
  failureThreshold: 60
readinessProbe:
  httpGet: { path: /healthz, port: metrics }
  periodSeconds: 10
  timeoutSeconds: 3
livenessProbe:
  httpGet: { path: /healthz, port: metrics }
  periodSeconds: 30
  timeoutSeconds: 5
  failureThreshold: 30
{{- end }}

{{- define "tickpipe.spread" -}}
topologySpreadConstraints:
  {{- range $key := list "kubernetes.io/hostname" "topology.kubernetes.io/zone" }}
  - maxSkew: 1
    topologyKey: {{ $key }}
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels:
        {{- include "tickpipe.selector" $ | nindent 8 }}
  {{- end }}
{{- end }}

{{- /* A value as text. Helm reads numbers of a file as floats, and would write a million as 1e+06. */ -}}
{{- define "tickpipe.text" -}}
{{- if and (kindIs "float64" .) (eq (float64 (int64 .)) .) }}{{ int64 . | toString }}{{ else }}{{ toString . }}{{ end }}
{{- end }}

{{- /* Streams of prices, one for each channel that the consumers serve. */ -}}
{{- define "tickpipe.streams" -}}
{{- $served := dict }}
{{- range compact (splitList "," .Values.consumer.partitions) }}
{{- $ends := splitList "-" . }}
{{- range untilStep (int (first $ends)) (int (add1 (last $ends))) 1 }}
{{- $_ := set $served (toString .) true }}
{{- end }}
{{- end }}
{{- if eq (int .Values.partitions) 1 }}
{{- list .Values.priceStream | toJson }}
{{- else }}
{{- $streams := list }}
{{- range $channel := until (int .Values.partitions) }}
{{- if or (not $served) (hasKey $served (toString $channel)) }}
{{- $streams = append $streams (printf "%s:{%d}" $.Values.priceStream $channel) }}
{{- end }}
{{- end }}
{{- $streams | toJson }}
{{- end }}
{{- end }}
