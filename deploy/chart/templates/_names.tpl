{{/* The labels of a component's objects; its name is the argument's first element, the root the second. */}}
{{- define "warren.labels" -}}
app.kubernetes.io/name: {{ index . 0 }}
app.kubernetes.io/part-of: warren
app.kubernetes.io/version: {{ (index . 1).Chart.AppVersion | quote }}
{{- end }}

{{/* The labels of a component's pods. The mesh's own pods are never captured, whatever their namespace says. */}}
{{- define "warren.podLabels" -}}
app.kubernetes.io/name: {{ . }}
app.kubernetes.io/part-of: warren
warren.dev/mesh: disabled
sidecar.istio.io/inject: "false"
{{- end }}

{{/* The image of a program; its name is the argument's first element, the root the second. */}}
{{- define "warren.image" -}}
{{- $root := index . 1 -}}
{{ $root.Values.image.repository }}/{{ index . 0 }}:{{ $root.Values.image.tag | default $root.Chart.AppVersion }}
{{- end }}

{{/* The Secrets with which images are fetched. */}}
{{- define "warren.pullSecrets" -}}
{{- with .Values.image.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- end }}
