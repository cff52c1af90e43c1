{{- define "operator.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 50 | trimSuffix "-" }}
{{- end }}

{{- define "operator.fullname" -}}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride }}
{{- else }}
{{- $name := include "operator.name" . }}
{{- ternary .Release.Name (printf "%s-%s" .Release.Name $name) (contains $name .Release.Name) | trunc 50 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{/* What has no namespace is called after the release's, so that two releases do not meet. */}}
{{- define "operator.clusterName" -}}
{{ .Release.Namespace }}:{{ include "operator.fullname" . }}
{{- end }}

{{- define "operator.account" -}}
{{- if .Values.serviceAccount.create }}
{{- default (include "operator.fullname" .) .Values.serviceAccount.name }}
{{- else }}
{{- default "default" .Values.serviceAccount.name }}
{{- end }}
{{- end }}

{{/* What sends evictions. It has no namespace, so that its name has. */}}
{{- define "operator.webhookName" -}}
{{ .Release.Namespace }}.{{ include "operator.fullname" . }}
{{- end }}

{{- define "operator.webhookSecret" -}}
{{ include "operator.fullname" . }}-webhook
{{- end }}

{{- define "operator.selector" -}}
app.kubernetes.io/name: {{ include "operator.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "operator.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{ include "operator.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/part-of: capturedrain
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end }}

{{- define "operator.subject" -}}
- kind: ServiceAccount
  name: {{ include "operator.account" . }}
  namespace: {{ .Release.Namespace }}
{{- end }}

{{/* What the operator does in the namespaces that it looks after. */}}
{{- define "operator.rules" -}}
- apiGroups: [capturedrain.io]
  resources: [capturedrains]
  verbs: [get, list, watch, patch, delete{{ if .Values.webhook.enabled }}, create{{ end }}]
- apiGroups: [capturedrain.io]
  resources: [capturedrains/status]
  verbs: [patch]
- apiGroups: [""]
  resources: [pods]
  verbs: [list, watch{{ if .Values.webhook.enabled }}, get{{ end }}]
- apiGroups: [""]
  resources: [services]
  verbs: [get]
- apiGroups: [discovery.k8s.io]
  resources: [endpointslices]
  verbs: [list]
- apiGroups: [events.k8s.io]
  resources: [events]
  verbs: [create, patch{{ if .Values.webhook.enabled }}, list{{ end }}]
{{- if .Values.webhook.enabled }}
- apiGroups: [policy]
  resources: [poddisruptionbudgets]
  verbs: [list]
{{- end }}
{{- if .Values.rbac.ticdc }}
- apiGroups: [pingcap.com]
  resources: [tidbclusters]
  verbs: [get, list]
- apiGroups: [core.pingcap.com]
  resources: [ticdcgroups]
  verbs: [get, list]
{{- end }}
{{- end }}

{{- define "operator.nodeRules" -}}
- apiGroups: [""]
  resources: [nodes]
  verbs: [get, list, watch]
{{- end }}
