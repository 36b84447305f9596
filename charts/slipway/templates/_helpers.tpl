{{- define "slipway.fullname" -}}
{{- if contains "slipway" .Release.Name }}{{ .Release.Name | trunc 40 | trimSuffix "-" }}
{{- else }}{{ printf "%s-slipway" .Release.Name | trunc 40 | trimSuffix "-" }}{{ end }}
{{- end }}

{{- define "slipway.selector" -}}
app.kubernetes.io/name: slipway-operator
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "slipway.labels" -}}
{{ include "slipway.selector" . }}
app.kubernetes.io/part-of: slipway
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end }}

{{- /* repository@digest, or repository:tag, the tag being appVersion by default. Argument: [root, image] */}}
{{- define "slipway.image" -}}
{{- $root := index . 0 }}{{ $image := index . 1 -}}
{{- if $image.digest }}{{ $image.repository }}@{{ $image.digest }}
{{- else }}{{ $image.repository }}:{{ $image.tag | default $root.Chart.AppVersion }}{{ end }}
{{- end }}

{{- define "slipway.keySecret" -}}
{{ .Values.reports.keySecret | default (printf "%s-report-key" (include "slipway.fullname" .)) }}
{{- end }}

{{- define "slipway.tlsSecret" -}}
{{- if eq .Values.reports.tls.source "Secret" }}
{{- required "reports.tls.secretName: name the Secret that reports.tls.source: Secret stands for" .Values.reports.tls.secretName }}
{{- else }}{{ include "slipway.fullname" . }}-report-tls{{ end }}
{{- end }}

{{- define "slipway.reportsHost" -}}
{{ include "slipway.fullname" . }}-reports.{{ .Release.Namespace }}.svc
{{- end }}

{{- /* The namespaces that TrainJobs run in; rendering ends with advice when there is none. */}}
{{- define "slipway.namespaces" -}}
{{- if not .Values.watch.namespaces }}
{{- fail "watch.namespaces: name at least one namespace that TrainJobs run in" }}
{{- end }}
{{- toJson .Values.watch.namespaces }}
{{- end }}

{{- define "slipway.podSecurity" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "slipway.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}
