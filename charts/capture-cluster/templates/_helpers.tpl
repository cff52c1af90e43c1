{{- define "captures.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 40 | trimSuffix "-" }}
{{- end }}

{{/* Captures are called as the release is: `helm install cdc` brings cdc-0, cdc-1 and cdc-2. */}}
{{- define "captures.fullname" -}}
{{- default .Release.Name .Values.fullnameOverride | trunc 40 | trimSuffix "-" }}
{{- end }}

{{/* Clusters of two namespaces may share an etcd, and must not share its keys. */}}
{{- define "captures.cluster" -}}
{{- default (printf "%s.%s" .Release.Namespace (include "captures.fullname" .)) .Values.cluster }}
{{- end }}

{{/* Where the pods of a Service without an address have their names: the argument is that Service, and the root. */}}
{{- define "captures.domain" -}}
{{ index . 0 }}.{{ (index . 1).Release.Namespace }}.svc
{{- end }}

{{- define "captures.scheme" -}}
{{ ternary "https" "http" (ne .Values.tls.secretName "") }}
{{- end }}

{{- define "captures.image" -}}
{{ .repository }}{{ if .digest }}@{{ .digest }}{{ else }}:{{ .tag }}{{ end }}
{{- end }}

{{- define "captures.selector" -}}
app.kubernetes.io/name: {{ include "captures.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: capture
{{- end }}

{{- define "etcd.fullname" -}}
{{ include "captures.fullname" . }}-etcd
{{- end }}

{{- define "etcd.selector" -}}
app.kubernetes.io/name: {{ include "captures.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: etcd
{{- end }}

{{/* HOST:PORT of every member, as a list. */}}
{{- define "etcd.members" -}}
{{- $members := .Values.etcd.external }}
{{- if not $members }}
{{- $name := include "etcd.fullname" . }}
{{- $domain := include "captures.domain" (list $name .) }}
{{- range until 3 }}
{{- $members = append $members (printf "%s-%d.%s:2379" $name . $domain) }}
{{- end }}
{{- end }}
{{- join "," $members }}
{{- end }}

{{- define "captures.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/part-of: capturedrain
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end }}

{{/* What restricted pod security wants of a pod, and of a container. */}}
{{- define "captures.podSecurity" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
fsGroupChangePolicy: OnRootMismatch
seccompProfile:
  type: RuntimeDefault
{{- end }}

{{- define "captures.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end }}

{{/* The seconds that the hook leaves to the server, and that a server without a hook leaves to its own end. */}}
{{- define "captures.marginSeconds" -}}
15
{{- end }}
